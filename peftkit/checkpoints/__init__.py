"""Checkpoints that can be resumed on another number of ranks.

Optimizer and random state by name, and the files they are saved in. The final model of a run is
in `runs`.
"""
