"""`efserve convert`: brings a PyTorch, TorchScript or ONNX model into a repository, checked against its source."""
