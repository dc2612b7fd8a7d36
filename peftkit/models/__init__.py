"""Tokenizers, base models and task heads, batched inference and ONNX models.

This package applies a fine-tuning method to a model. `recipe` defines methods, `runs` reads saved runs.
"""
