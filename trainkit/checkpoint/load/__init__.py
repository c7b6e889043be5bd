"""Reading checkpoints: every byte is checked before anything is changed."""
