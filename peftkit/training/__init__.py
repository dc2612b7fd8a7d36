"""One training run: arguments, Trainer, callbacks, evaluation and report.

Writing and loading run folders is in `runs`, resuming in `checkpoints`.
"""
