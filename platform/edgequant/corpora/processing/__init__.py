"""Files to chunks, in worker processes or on Ray."""
