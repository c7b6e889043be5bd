"""Reading checkpoints: every byte that is used is verified."""
