"""Run folders: report, manifest of hashes, saving, loading and verification in a new process.

`training` runs the training; `export` writes other model formats.
"""
