"""Folders in GPTQ's layout, which transformers (with gptqmodel), vLLM and onnxruntime-genai's builder read."""
