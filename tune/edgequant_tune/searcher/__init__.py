"""Which hyperparameters are tried next: a search algorithm that knows nothing of Ray."""
