"""Predictions with a run or an exported model, for lists, files and streams.

Readers and writers of prediction files belong here; reading training data is in `data`.
"""
