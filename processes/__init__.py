"""Parts of the process manager: start, find, cancel, settle, remove, recover.

`process_manager` is the way in.
"""
