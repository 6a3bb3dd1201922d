"""Post-training quantisation: methods that need no training."""
