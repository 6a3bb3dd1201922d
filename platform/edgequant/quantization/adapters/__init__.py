"""Adapters on a checkpoint's integers: trained through them, and merged back into them without a change."""
