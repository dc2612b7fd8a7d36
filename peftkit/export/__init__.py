"""Export finished runs as adapters, merged models or ONNX, and verify each export.

This package also combines adapters, writes model cards and uploads to the Hub. `prediction` loads models for
prediction.
"""
