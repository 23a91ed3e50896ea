"""Facts about this worker: settings, secrets, log, figures, GPUs, folders on the scratch disk."""
