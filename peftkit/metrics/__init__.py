"""Metrics, confidence intervals and significance tests.

Functions of predictions and references, without model, tokenizer or dataset.
"""
