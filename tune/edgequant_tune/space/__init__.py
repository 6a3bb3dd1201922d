"""What makes a search space: hyperparameters, when they count, how they become settings."""
