"""One attempt at a process on this worker, from its slot to the last file that it stores."""
