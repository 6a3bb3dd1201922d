"""Quantisation-aware training: its settings, its start, what is trained beside the weights."""
