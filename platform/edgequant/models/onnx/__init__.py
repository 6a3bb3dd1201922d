"""Folders for onnxruntime-genai: how one is known, what it says of itself, and the packages that it needs."""
