"""Text cleaned, cut into sentences and chunks, counted in tokens."""
