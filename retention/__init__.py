"""Deletion of what has expired, in the store and on the scratch disk."""
