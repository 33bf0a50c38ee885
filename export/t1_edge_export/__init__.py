"""Checkpoint to build: reads float weights, quantizes them, writes ONNX and GGUF, verifies."""
