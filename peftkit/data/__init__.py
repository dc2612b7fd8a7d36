"""Datasets: file formats, sources, splits, fingerprints and quality checks.

This package reads every file format, for training and for prediction. `tasks` tokenizes.
"""
