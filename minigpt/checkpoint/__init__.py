"""checkpoint: manager and manifest; files is atomic_write."""
