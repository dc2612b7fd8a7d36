"""`auto_find_batch_size` at a constant global batch: a smaller device batch is accumulated more often."""

from typing import Any

import torch
from transformers import Trainer

from peftkit.checkpoints.rng_state import read_rng_state, set_rng_state
from peftkit.system.logging import logger


class ConstantGlobalBatchTrainer(Trainer):
    """Mixin for any Trainer class; without `auto_find_batch_size` it changes nothing.

    When memory runs out, the library tries again with nine tenths of the batch, the current weights and the same
    accumulation. Here the batch becomes the next smaller divisor of the global batch, with more accumulation, and each
    attempt starts with the weights and random numbers of the first.
    """

    _whole = 0
    _tried = 0
    _error: Exception | None = None
    _first: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] | None = None

    def _inner_training_loop(  # type: ignore[override]
        self, batch_size: int | None = None, args: Any = None, **how: Any
    ) -> Any:
        """Train with a device batch that divides the global batch."""
        if not args.auto_find_batch_size:
            return super()._inner_training_loop(batch_size, args, **how)
        assert batch_size is not None
        self._begin(args.per_device_train_batch_size * args.gradient_accumulation_steps)
        fitting = max(size for size in range(1, batch_size + 1) if self._whole % size == 0)
        if fitting == self._tried:
            assert self._error is not None
            raise self._error
        if self._tried:
            logger.info(
                "out of memory with batch size %d per device; retrying with %d (gradient accumulation %d)",
                self._tried, fitting, self._whole // fitting,
            )  # fmt: skip
        self._tried, args.gradient_accumulation_steps = fitting, self._whole // fitting
        try:
            return super()._inner_training_loop(fitting, args, **how)
        except Exception as error:
            # Without the traceback, which would hold the activations of the failed attempt in memory.
            self._error = type(error)(*error.args)
            raise

    def _begin(self, whole: int) -> None:
        """Store what the first attempt starts with, or restore it."""
        model: Any = self.model
        trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
        if self._first is None:
            self._whole = whole
            self._first = {name: one.detach().cpu().clone() for name, one in trained.items()}, read_rng_state()
            return
        # The optimizer and the schedule belong to the failed attempt.
        self.optimizer = self.lr_scheduler = None
        weights, random = self._first
        with torch.no_grad():
            for name, one in trained.items():
                one.copy_(weights[name])
                one.grad = None
        set_rng_state(random)
