"""`auto_find_batch_size` that keeps the global batch: a smaller batch of the device is accumulated more often."""

from typing import Any

import torch
from transformers import Trainer

from peftkit.checkpoints.rng_state import read_rng_state, set_rng_state
from peftkit.system.logging import logger


class KeepsGlobalBatch(Trainer):
    """Put before any class of Trainer's; without `auto_find_batch_size` it changes nothing.

    Where memory runs out, the library tries again with nine tenths of the batch, the weights as far as they had come
    and the same accumulation. Here the batch becomes the next that divides the whole, accumulated as often as that
    takes, and each attempt begins with the weights and random numbers of the first.
    """

    _whole = 0
    _tried = 0
    _error: Exception | None = None
    _first: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] | None = None

    def _inner_training_loop(  # type: ignore[override]
        self, batch_size: int | None = None, args: Any = None, **how: Any
    ) -> Any:
        """The Trainer's, with a batch that divides the whole."""
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
                "memory ran out with %d rows a device: %d, accumulated %d times", self._tried, fitting,
                self._whole // fitting,
            )  # fmt: skip
        self._tried, args.gradient_accumulation_steps = fitting, self._whole // fitting
        try:
            return super()._inner_training_loop(fitting, args, **how)
        except Exception as error:
            # Without its traceback, which would keep the failed attempt's activations in memory.
            self._error = type(error)(*error.args)
            raise

    def _begin(self, whole: int) -> None:
        """Keep what the first attempt begins with, or bring it back."""
        model: Any = self.model
        trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
        if self._first is None:
            self._whole = whole
            self._first = {name: one.detach().cpu().clone() for name, one in trained.items()}, read_rng_state()
            return
        # What the optimizer and the schedule have seen so far is of the attempt that failed.
        self.optimizer = self.lr_scheduler = None
        weights, random = self._first
        with torch.no_grad():
            for name, one in trained.items():
                one.copy_(weights[name])
                one.grad = None
        set_rng_state(random)
