"""One training run: arguments, Trainer, callbacks, evaluation and report.

`runs` writes and loads run folders; `checkpoints` resumes runs.
"""
