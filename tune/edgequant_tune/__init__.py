"""Hyperparameter search: Ray Tune and Optuna over quantisation-aware training and fine-tuning, tracked by MLflow."""
