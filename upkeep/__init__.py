"""What keeps a fleet of workers healthy: checks, figures, and cleaning up after processes."""
