"""What a search remembers: its ledger on disk, which outlives a crash, and the runs of its trials in MLflow."""
