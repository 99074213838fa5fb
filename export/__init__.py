"""Checkpoint -> TorchScript and ONNX -> model repository; exported equals eager."""
