"""`python -m jobs`, for people."""
