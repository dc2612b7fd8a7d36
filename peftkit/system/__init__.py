"""Files, logging, plug-ins and the environment; nothing here knows models or tasks.

Error types and exit codes are in `peftkit.errors`.
"""
