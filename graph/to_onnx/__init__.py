"""Our graph out as an ONNX model: the opposite of `frontend`."""
