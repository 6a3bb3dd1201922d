"""Trials that are compared before they end: when that is sound, on what, and after how many steps."""
