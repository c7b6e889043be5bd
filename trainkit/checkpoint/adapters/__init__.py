"""From objects in memory to documents on disk, and back."""
