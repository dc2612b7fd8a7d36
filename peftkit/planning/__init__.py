"""Memory and time estimates without training: `peftkit plan` and `--ds auto`.

`training` and `system` measure real runs.
"""
