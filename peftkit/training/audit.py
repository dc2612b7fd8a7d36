"""Training audit: every trainable tensor had a gradient and changed, every frozen tensor is unchanged.

A decreasing loss is not sufficient: the head alone can decrease the loss while the adapter does not change. The audit
computes a fingerprint of each tensor before training, and records gradients until each trainable tensor has one.
"""

import hashlib
from typing import Any

import torch

from peftkit.distributed.process_group import gather_from_ranks
from peftkit.errors import AuditError, DivergedError

FIRST_CHECK = 3
LAST_CHECK = 10
UNMOVED = "trainable but unchanged"
NOT_FINITE = "trainable but not finite"
HALVES = (torch.bfloat16, torch.float16)


def _shard(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Return the shard of the parameter on this rank: the ZeRO-3 partition, or the whole parameter."""
    return getattr(parameter, "ds_tensor", parameter).detach()


def fingerprint(parameter: torch.nn.Parameter) -> bytes:
    """Compute a 128-bit BLAKE2b digest of the bytes of the tensor."""
    raw = _shard(parameter).contiguous().flatten().view(torch.uint8).cpu().numpy()
    return hashlib.blake2b(raw.data, digest_size=16).digest()


def _merge_ranks(names: set[str]) -> set[str]:
    """Return the names that at least one rank has."""
    return set().union(*gather_from_ranks(names))


def _list_some(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


def _choose_error_type(problems: list[str]) -> type[AuditError]:
    return DivergedError if any(problem.startswith(NOT_FINITE) for problem in problems) else AuditError


class TrainingAudit:
    """Audit of the parameters of one model in one training run.

    Every rank creates an audit after DeepSpeed has wrapped the model, and calls the same methods in the same order.
    `start_step` is the step of the checkpoint of a resumed run. `passed_before` is the step at which the audit passed
    before that checkpoint.
    """

    def __init__(self, model: torch.nn.Module, start_step: int = 0, passed_before: int | None = None) -> None:
        self.start_step = start_step
        self.passed_before = passed_before
        self.parameters = dict(model.named_parameters())
        self.trainable = {name for name, parameter in self.parameters.items() if parameter.requires_grad}
        # DeepSpeed updates float32 master weights; their 16-bit copies may round to the old value.
        self.coarse = {name for name in self.trainable if _shard(self.parameters[name]).dtype in HALVES}
        self.start = {name: fingerprint(parameter) for name, parameter in self.parameters.items()}
        self.gradients: dict[str, torch.Tensor] = {}
        self.hooks = [
            self.parameters[name].register_hook(lambda gradient, name=name: self._record_gradient(name, gradient))
            for name in sorted(self.trainable)
        ]
        self.passed_at: int | None = None

    def _record_gradient(self, name: str, gradient: torch.Tensor) -> None:
        # The result stays on the device until `step` reads it, so that the GPU does not wait for each tensor.
        good = torch.isfinite(gradient).all() & (gradient != 0).any()
        self.gradients[name] = self.gradients[name] | good if name in self.gradients else good

    def _find_changed(self, names: set[str]) -> set[str]:
        return _merge_ranks({name for name in names if fingerprint(self.parameters[name]) != self.start[name]})

    def _find_problems(self) -> list[str]:
        """List the current problems; empty if every tensor is as expected."""
        with_gradient = _merge_ranks({name for name, good in self.gradients.items() if bool(good)})
        moved = self._find_changed(self.trainable) | self.coarse
        finite = {name for name in self.trainable if bool(torch.isfinite(_shard(self.parameters[name])).all())}
        broken = _merge_ranks(self.trainable - finite)
        changed = self._find_changed(set(self.parameters) - self.trainable)
        return [
            f"{what}: {_list_some(names)}"
            for what, names in (
                ("trainable but without a finite non-zero gradient", self.trainable - with_gradient),
                (UNMOVED, self.trainable - moved),
                (NOT_FINITE, broken),
                ("frozen but changed", changed),
            )
            if names
        ]

    def step(self, global_step: int) -> None:
        """Check after an optimizer step, until the audit passes or the step `LAST_CHECK`.

        A correct tensor may stay unchanged in the first steps: LoRA's A has no gradient while B is zero, warm-up starts
        from a learning rate of 0, a float16 scaler skips steps. Raises AuditError at the last check.
        """
        done = global_step - self.start_step
        if self.passed_at is not None or done < FIRST_CHECK:
            return
        problems = self._find_problems()
        if not problems:
            self.passed_at = global_step
            self.detach()
        elif done >= LAST_CHECK:
            self.detach()
            raise _choose_error_type(problems)(f"training audit, step {global_step}: {'; '.join(problems)}")

    def finish(self, global_step: int, *, restored: bool = False) -> dict[str, Any]:
        """Check at the end of training and return the result. Raises AuditError for a problem.

        `restored` weights of the first checkpoint may be unchanged. With fewer than `FIRST_CHECK` steps the result is
        inconclusive for trainable tensors, and only frozen tensors are checked. Unchanged tensors in 16 bits are
        counted; they are no error.
        """
        self.detach()
        problems = self._find_problems()
        done = global_step - self.start_step
        short = done < FIRST_CHECK
        if restored:
            problems = [problem for problem in problems if not problem.startswith(UNMOVED)]
        if short:
            problems = [problem for problem in problems if problem.startswith("frozen")]
        if problems:
            raise _choose_error_type(problems)(
                f"training audit, end of training (step {global_step}): {'; '.join(problems)}"
            )
        is_inconclusive = short and self.passed_before is None
        resumed = {"resumed_at_step": self.start_step} if self.start_step else {}
        return {
            "verdict": f"inconclusive: needs at least {FIRST_CHECK} steps, got {done}" if is_inconclusive else "passed",
            "passed_at_step": self.passed_at or self.passed_before,
            **resumed,
            "end_step": global_step,
            "trainable_tensors": len(self.trainable),
            "frozen_tensors": len(self.parameters) - len(self.trainable),
            "unmoved_in_16_bits": len(self.coarse) - len(self._find_changed(self.coarse)),
        }

    def detach(self) -> None:
        """Remove the hooks on the gradients."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []
