"""The Trainer for tasks whose loss is a mean over tokens: each labelled token of an optimizer step counts alike."""

from typing import Any

import torch
from transformers import Seq2SeqTrainer, Trainer

from peftkit.tasks.default import IGNORED


class _TokenMean(Trainer):
    """A micro-batch's mean counts by its share of the labelled tokens of all micro-batches and ranks of its step.

    The mean of means that the library takes would weigh a token of a batch with few of them more, and so depend on
    how the same rows are spread over ranks and micro-batches. The loss itself stays the model's own, or the smoothed
    one. With `average_tokens_across_devices` false the ranks' means are averaged as they are.
    """

    loss_is_scaled_for_ga = True

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """The micro-batches of a step, and how many labelled tokens all ranks have in it."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        tokens = torch.as_tensor(sum(_labelled(batch) for batch in batches), device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            tokens = self.accelerator.reduce(tokens, reduction="sum")
        return batches, tokens

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over the tokens of `inputs`, in training times their share of the step's tokens."""
        here = _labelled(inputs)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if num_items_in_batch is not None:
            # Gradients of the ranks are averaged afterwards.
            ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            # Of no tokens the mean is no number.
            loss = torch.where(here > 0, loss, 0.0) * here * ranks / num_items_in_batch.clamp(min=1)
        return (loss, outputs) if return_outputs else loss


class TokenTrainer(_TokenMean):
    """For tags of tokens."""


class Seq2SeqTokenTrainer(_TokenMean, Seq2SeqTrainer):
    """For generated texts."""


def _labelled(batch: dict[str, Any]) -> torch.Tensor:
    return batch["labels"].ne(IGNORED).sum()
