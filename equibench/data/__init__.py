"""Data sets as memory-mapped arrays, and their splits."""
