"""The stores that keep the contract of `storage`: a folder, and an S3 bucket.

`local` is a folder, `s3` a bucket, and `open` opens the store that the settings name. `probe` finds
out what a bucket really does, and `link_probe` what its links do. `streams` and `prefixes` are for
both stores.
"""
