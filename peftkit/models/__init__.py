"""Tokenizers, base models and task heads, batched inference and ONNX models.

The fine-tuning method is in `recipe`; saved runs are in `runs`.
"""
