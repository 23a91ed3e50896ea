"""What a person at a terminal can ask of this worker, and how its answers are printed."""
