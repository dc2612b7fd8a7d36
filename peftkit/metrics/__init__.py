"""Scores of the field's own packages as `evaluate` modules that need no network, and their intervals. A file a kind."""
