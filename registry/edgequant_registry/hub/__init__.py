"""Checkpoints on the model hub."""
