"""Both sides of a child process: what a job sees of its attempt, and how the worker runs one."""
