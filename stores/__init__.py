"""The stores that keep the contract of `storage`: a folder, and an S3 bucket.

`local_store` keeps `local_objects`, which stand on `local_files`, off the event loop. `s3_store`
decides what a failed or unclear request means; `s3_requests` makes them, with boto3 as `s3_client`
sets it up; `s3_errors` types what boto3 raises, `s3_calls` keeps it off the event loop,
`s3_transfer` moves files (`s3_files` is its disk side, `s3_stream` what comes in chunks),
`s3_links` makes links and joins what callers sent by them, and `store_probe` finds out what a
bucket really does. `streams` and `prefixes` are for both stores.
"""
