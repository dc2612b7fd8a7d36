"""The logger of peftkit; only rank 0 logs."""

import logging
import os
import sys
import warnings

logger = logging.getLogger("peftkit")


def is_rank_zero() -> bool:
    """Return whether this process logs and writes files: rank 0 of the launcher, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def set_up_logging(*, debug: bool = False) -> None:
    """Log peftkit's messages to standard error, and only errors of the libraries.

    Ranks other than 0 log nothing. With `debug` the libraries log too.
    """
    import datasets
    import torch
    import transformers

    if not torch.accelerator.is_available():
        # Other libraries import DeepSpeed, which would warn about the missing GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("peftkit: %(message)s"))
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.disabled = not is_rank_zero()
    if debug:
        return
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    # Deprecation warnings between the libraries; a user cannot act on them.
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*is deprecated and will be removed in v6")
    warnings.filterwarnings("ignore", category=FutureWarning, message=r"`torch\.distributed\.\w+` is deprecated")
    warnings.filterwarnings(
        "ignore", category=FutureWarning, message="Version v4.12.0 introduces a better way to train"
    )
    for name in ("DeepSpeed", "deepspeed", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
