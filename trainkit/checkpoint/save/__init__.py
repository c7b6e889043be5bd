"""Writing checkpoints: the claim of a root, files, the commit, and what is kept."""
