"""What lies on a disk or on the Hub, and what of it is read:

1. `census` counts the files by format and chooses the format that holds the most images.
2. `image_folders` walks a folder; `named_splits` says which files are of which split, by names.
3. `listing` makes rows of image files, with labels from folders or from `metadata_files`.
4. `opening` makes rows of files of one format: parquet, Arrow, `tars`, `zips`, `tables` that name images.
5. `cache` holds what has to be downloaded, decompressed or written once.
"""
