"""Aliases of a registered model: the right to change them, their history, and how they move."""
