"""What jobs are given that comes from outside.

`public_web` decides where a request may go and sends it nowhere else, `fetch` makes a file of what
is there, `blob_cache` keeps such files so that a worker fetches one but once. `files` is what they
know of the worker's disk, `errors` what a caller may be told.
"""
