"""Demo datasets that need no network: real text from installed Python packages.

`peftkit.models` contains the demo models.
"""
