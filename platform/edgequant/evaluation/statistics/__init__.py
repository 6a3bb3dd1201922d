"""Intervals, paired comparisons, samples."""
