"""Where trials run: Ray, started or joined, what its nodes have, and what they share."""
