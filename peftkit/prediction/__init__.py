"""Predictions with a run or an exported model, for lists, files and streams.

This package batches rows and writes prediction files. `data` reads file formats.
"""
