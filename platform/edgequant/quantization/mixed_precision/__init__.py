"""Bits of each layer, chosen by sensitivity within a size."""
