"""From files to batches. What happens to an image, and the modules that do it:

1. `loading` finds what the user names (`formats`: what lies there, and what of it is read), as rows of `datasets` or
   as a source of rows that are read by their numbers (`sources`, `shards`, `reading`); `columns`, `labels`, `subsets`
   and `held_out` say which column and which rows are used.
2. `order` says which row comes when; `samplers` cuts the order into batches of keys (epoch, row) (`epoch_cut`).
3. `dataset` reads the rows of the keys; `decoding` turns bytes into pixels; `transforms` crops, augments and masks.
4. `dataset` makes batches of the samples, and replaces or reports the broken images among them.
5. `progress` counts what was given and skipped, which is what a checkpoint needs to go on exactly.
"""
