"""The actions that callers may ask for, and the replies to them."""
