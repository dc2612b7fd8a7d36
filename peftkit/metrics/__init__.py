"""Metrics, confidence intervals and significance tests.

Functions of predictions and references; no model, tokenizer or dataset is used here.
"""
