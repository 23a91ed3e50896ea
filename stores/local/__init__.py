"""A store in a folder: the contract of `storage` on a file system."""
