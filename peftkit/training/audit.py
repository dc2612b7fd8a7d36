"""Did the run train what it said it would, and nothing else?

A low loss does not tell: a head alone can lower it while every adapter weight stays where it was. So each tensor is
fingerprinted before training, and gradients are watched until each trainable tensor has had one.
"""

import hashlib
from typing import Any

import torch

from peftkit.errors import AuditError, DivergedError

FIRST_CHECK = 3
LAST_CHANCE = 10
UNMOVED = "trainable but did not move"
NOT_FINITE = "trainable and no longer finite"
HALVES = (torch.bfloat16, torch.float16)


def _shard(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The part of the parameter that this rank owns: its ZeRO-3 partition, or the whole."""
    return getattr(parameter, "ds_tensor", parameter).detach()


def fingerprint(parameter: torch.nn.Parameter) -> bytes:
    """A 128-bit BLAKE2b digest of the tensor's bytes; two tensors share it only when bit-identical."""
    raw = _shard(parameter).contiguous().flatten().view(torch.uint8).cpu().numpy()
    return hashlib.blake2b(raw.data, digest_size=16).digest()


def _any_rank(names: set[str]) -> set[str]:
    """The names that at least one rank holds."""
    if not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
        return names
    every: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, names)
    return set().union(*every)


def _some(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


def _kind(problems: list[str]) -> type[AuditError]:
    return DivergedError if any(problem.startswith(NOT_FINITE) for problem in problems) else AuditError


class TrainingAudit:
    """Watches the parameters of one model through one training run.

    Every rank makes one, after the model has been handed to DeepSpeed, and calls the same methods in the same order.
    A run that goes on from a checkpoint at step `begun_at` is watched anew from there; `passed_before` is the step at
    which it had passed until then.
    """

    def __init__(self, model: torch.nn.Module, begun_at: int = 0, passed_before: int | None = None) -> None:
        self.begun_at = begun_at
        self.passed_before = passed_before
        self.parameters = dict(model.named_parameters())
        self.trainable = {name for name, parameter in self.parameters.items() if parameter.requires_grad}
        # DeepSpeed steps masters in float32; their 16-bit copies may round back to where they were.
        self.coarse = {name for name in self.trainable if _shard(self.parameters[name]).dtype in HALVES}
        self.start = {name: fingerprint(parameter) for name, parameter in self.parameters.items()}
        self.gradients: dict[str, torch.Tensor] = {}
        self.hooks = [
            self.parameters[name].register_hook(lambda gradient, name=name: self._see(name, gradient))
            for name in sorted(self.trainable)
        ]
        self.passed_at: int | None = None

    def _see(self, name: str, gradient: torch.Tensor) -> None:
        # Kept on the device and read only in `step`, so that a GPU need not wait for each tensor.
        good = torch.isfinite(gradient).all() & (gradient != 0).any()
        self.gradients[name] = self.gradients[name] | good if name in self.gradients else good

    def _changed(self, names: set[str]) -> set[str]:
        return _any_rank({name for name in names if fingerprint(self.parameters[name]) != self.start[name]})

    def _problems(self) -> list[str]:
        """What is wrong now, a sentence each; empty when every tensor behaved."""
        had_gradient = _any_rank({name for name, good in self.gradients.items() if bool(good)})
        moved = self._changed(self.trainable) | self.coarse
        finite = {name for name in self.trainable if bool(torch.isfinite(_shard(self.parameters[name])).all())}
        broken = _any_rank(self.trainable - finite)
        changed = self._changed(set(self.parameters) - self.trainable)
        return [
            f"{what}: {_some(names)}"
            for what, names in (
                ("trainable but never had a finite non-zero gradient", self.trainable - had_gradient),
                (UNMOVED, self.trainable - moved),
                (NOT_FINITE, broken),
                ("frozen but changed", changed),
            )
            if names
        ]

    def step(self, global_step: int) -> None:
        """Check after an optimizer step, until the audit passes once or `LAST_CHANCE` is reached.

        The first steps may leave a tensor still for good reason: LoRA's A has no gradient while B is zero, warm-up
        starts from a learning rate of 0, a float16 scaler skips steps. Raises AuditError at the last chance.
        """
        done = global_step - self.begun_at
        if self.passed_at is not None or done < FIRST_CHECK:
            return
        problems = self._problems()
        if not problems:
            self.passed_at = global_step
            self.detach()
        elif done >= LAST_CHANCE:
            self.detach()
            raise _kind(problems)(f"training audit, step {global_step}: {'; '.join(problems)}")

    def finish(self, global_step: int, *, put_back: bool = False) -> dict[str, Any]:
        """Check at the end of training and return the finding. Raises AuditError when a tensor misbehaved.

        Weights that were `put_back` to where they began, the best being those of the checkpoint, need not have moved.
        A run of fewer than `FIRST_CHECK` steps is too short to judge trainable tensors; only the frozen ones are held
        to their start, and the finding says so. Tensors in 16 bits that did not move are counted, not failed.
        """
        self.detach()
        problems = self._problems()
        done = global_step - self.begun_at
        short = done < FIRST_CHECK
        if put_back:
            problems = [problem for problem in problems if not problem.startswith(UNMOVED)]
        if short:
            problems = [problem for problem in problems if problem.startswith("frozen")]
        if problems:
            raise _kind(problems)(f"training audit, end of training (step {global_step}): {'; '.join(problems)}")
        unjudged = short and self.passed_before is None
        resumed = {"resumed_at_step": self.begun_at} if self.begun_at else {}
        return {
            "verdict": f"too short to judge: {done} steps of at least {FIRST_CHECK}" if unjudged else "passed",
            "passed_at_step": self.passed_at or self.passed_before,
            **resumed,
            "end_step": global_step,
            "trainable_tensors": len(self.trainable),
            "frozen_tensors": len(self.parameters) - len(self.trainable),
            "unmoved_in_16_bits": len(self.coarse) - len(self._changed(self.coarse)),
        }

    def detach(self) -> None:
        """Listen to the gradients no longer."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []
