"""Datasets: file formats, sources, splits, fingerprints and quality checks.

Each file format is read here, for training and for prediction. Tokenization belongs to `tasks`.
"""
