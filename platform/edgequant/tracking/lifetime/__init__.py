"""From a run's beginning to its end: whose process it is, whether that lives, how it ends, what goes on with it."""
