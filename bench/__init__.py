"""What this worker costs, measured as ratios in one run: machines are noisy."""
