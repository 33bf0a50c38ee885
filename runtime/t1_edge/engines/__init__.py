"""What multiplies matrices: ONNX Runtime, llama.cpp, and a fake for tests."""

import os

# Before any module here imports onnxruntime, whose wheels else tell Microsoft that they are used.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
