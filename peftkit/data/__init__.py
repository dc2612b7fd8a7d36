"""Datasets: sources, splits, fingerprints and quality checks.

Tokenization belongs to `tasks`; files for prediction are read in `prediction`.
"""
