"""Fitted models as ONNX graphs, which torch functions write when traced tensors go through."""
