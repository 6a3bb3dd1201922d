"""Checkpoints for other runtimes: GGUF for llama.cpp, ONNX for onnxruntime-genai, folders for transformers and vLLM."""
