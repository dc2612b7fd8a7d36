"""Demo datasets that need no network: real text from installed Python packages.

The demo models are in `models`.
"""
