"""Latency and energy."""
