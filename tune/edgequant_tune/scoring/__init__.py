"""What trials are scored on, and what they have to keep."""
