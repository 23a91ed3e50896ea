"""The life of a process in parts; `process_manager` is the way in.

From the ground up: `record` and `delivery` (what a process is, and what a start does about it:
pure), `slots` and `record_cache` (what a worker has one each of, see `worker`), `lease` (the one
writer of a record), `uploads`, `files`, `index`, `links` and `notes` (what is stored beside it),
`run` (one attempt on this worker), `lookup` (how any process stands), `recovery` (what a worker
owes when it starts).
"""
