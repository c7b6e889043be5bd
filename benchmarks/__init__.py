"""Races of trainkit against named peers and a limit, side by side in one run. See README.md."""
