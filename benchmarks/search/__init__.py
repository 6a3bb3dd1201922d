"""Functions with a known best value that behave as trainings do, for `search_quality.py`."""
