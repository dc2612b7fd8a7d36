"""Predictions with a run or an exported model, for lists, files and streams.

Batches of rows and the files of predictions belong here; file formats are read in `data`.
"""
