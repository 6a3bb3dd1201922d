"""The ways in which `finetune` adapts a model: what is trained over which weights, and what becomes of it."""
