"""The training loop: transformers.Trainer with distillation and LoRA. Knows nothing of quantisation."""
