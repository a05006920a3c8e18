"""Reads ONNX: files, operator sets, and the lowering of ONNX's operators to ours."""
