"""Disks: what is wrong with one that does not take what is written, and what killed processes left on it."""
