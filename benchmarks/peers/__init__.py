"""What the benchmark scripts share: one module for each peer, what is measured of it, and the printed table."""
