"""Folders for onnxruntime-genai: a graph for ONNX Runtime that holds a checkpoint's own integers."""
