"""Tokenizers, base models and task heads, batched inference and ONNX models.

Applying a fine-tuning method to a model belongs here; the values of a method are in `recipe`, saved runs in `runs`.
"""
