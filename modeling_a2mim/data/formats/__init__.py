"""What lies in a folder or a repository: images, tar, zip and parquet files, tables and metadata."""
