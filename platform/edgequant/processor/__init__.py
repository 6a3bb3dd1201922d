"""The machine's processor: how many cores there are to compute with, and what else wants them. Light."""
