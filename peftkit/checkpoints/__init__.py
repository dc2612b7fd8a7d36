"""Checkpoints that can be resumed on another number of ranks.

This package reads and writes optimizer and random state by name. `runs` writes the final model of a run.
"""
