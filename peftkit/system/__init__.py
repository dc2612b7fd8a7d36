"""Files, logging and the environment: helpers that know nothing of models or tasks.

Error types and exit codes are in `peftkit.errors`.
"""
