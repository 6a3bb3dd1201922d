"""Checkpoints for other runtimes: GGUF for llama.cpp, compressed-tensors for transformers and vLLM."""
