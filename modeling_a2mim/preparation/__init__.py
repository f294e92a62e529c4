"""Images decoded once, made smaller or cut in tiles, and written as shards that train fast.

1. `opening`: what the user names, as rows of each split.
2. `pixels`: an image to the pieces that are written; `encoding`: a piece to bytes.
3. `parts`: rows to parts, by several processes; each part is whole or not there.
4. `duplicates`, `statistics`: of all pieces, from what was kept with the parts.
5. `shards`: parts to the folder, with its `report` and card.
"""
