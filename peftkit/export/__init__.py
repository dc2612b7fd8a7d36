"""Export finished runs as adapters, merged models or ONNX, and verify each export.

Also merging of several adapters, model cards and the upload to the Hub. Loading a model for
prediction is in `prediction`.
"""
