"""ONNX folders in onnxruntime-genai: one sequence in its memory, and a process that times it."""
