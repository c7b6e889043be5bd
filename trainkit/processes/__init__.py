"""Processes: who descends from whom, what the kernel does for a parent, what they print."""
