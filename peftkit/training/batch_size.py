"""`auto_find_batch_size` with a constant global batch, by more accumulation steps."""

from typing import Any

import torch
from transformers import Trainer

from peftkit.checkpoints.rng_state import read_rng_state, set_rng_state
from peftkit.system.logging import logger


class ConstantGlobalBatchTrainer(Trainer):
    """Trainer mixin for `auto_find_batch_size`; without that option it has no effect.

    If memory runs out, the library retries with 90 % of the batch size, the current weights and the same accumulation
    steps. This class retries with the next smaller divisor of the global batch and more accumulation steps. Each
    attempt starts with the initial weights and RNG state.
    """

    _global_batch = 0
    _last_batch = 0
    _error: Exception | None = None
    _initial_state: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] | None = None

    def _inner_training_loop(  # type: ignore[override]
        self, batch_size: int | None = None, args: Any = None, **kwargs: Any
    ) -> Any:
        """Train with a device batch that divides the global batch."""
        if not args.auto_find_batch_size:
            return super()._inner_training_loop(batch_size, args, **kwargs)
        assert batch_size is not None
        self._start_attempt(args.per_device_train_batch_size * args.gradient_accumulation_steps)
        device_batch = max(size for size in range(1, batch_size + 1) if self._global_batch % size == 0)
        if device_batch == self._last_batch:
            assert self._error is not None
            raise self._error
        if self._last_batch:
            logger.info(
                "out of memory with batch size %d per device; retrying with %d (gradient accumulation %d)",
                self._last_batch, device_batch, self._global_batch // device_batch,
            )  # fmt: skip
        self._last_batch, args.gradient_accumulation_steps = device_batch, self._global_batch // device_batch
        try:
            return super()._inner_training_loop(device_batch, args, **kwargs)
        except Exception as error:
            # Without the traceback, which would reference the activations of the failed attempt.
            self._error = type(error)(*error.args)
            raise

    def _start_attempt(self, global_batch: int) -> None:
        """Store the initial weights and RNG state in the first attempt; restore them in later attempts."""
        model: Any = self.model
        trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
        if self._initial_state is None:
            self._global_batch = global_batch
            self._initial_state = {name: one.detach().cpu().clone() for name, one in trained.items()}, read_rng_state()
            return
        # The optimizer and the schedule belong to the failed attempt.
        self.optimizer = self.lr_scheduler = None
        weights, random = self._initial_state
        with torch.no_grad():
            for name, one in trained.items():
                one.copy_(weights[name])
                one.grad = None
        set_rng_state(random)
