"""Run folders: report, manifest of hashes, saving, loading and verification in a new process.

Training is in `training`; other model formats are in `export`.
"""
