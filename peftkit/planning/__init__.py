"""Memory and time estimates made without training: `peftkit plan` and `--ds auto`.

Measurements of real runs are in `training` and `system`.
"""
