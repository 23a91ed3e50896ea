"""Whether one worker can do its work, and the figures of all of them."""
