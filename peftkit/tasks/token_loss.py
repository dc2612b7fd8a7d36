"""Trainers whose loss is the mean over all labelled tokens of an optimizer step."""

from typing import Any

import torch
from transformers import Seq2SeqTrainer, Trainer

from peftkit.tasks.default import IGNORED


class _TokenMean(Trainer):
    """Weight the mean loss of each micro-batch by its share of the labelled tokens of the step.

    The Trainer of Transformers averages the means. That gives tokens in a batch with few labelled tokens a greater
    weight, and the loss depends on the distribution of the rows. With `average_tokens_across_devices` false the means
    of the ranks are averaged.
    """

    loss_is_scaled_for_ga = True

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """Return the micro-batches of a step and the number of labelled tokens on all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        tokens = torch.as_tensor(sum(_count_labelled_tokens(batch) for batch in batches), device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            tokens = self.accelerator.reduce(tokens, reduction="sum")
        return batches, tokens

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean over the tokens of `inputs`; in training, times their share of the step."""
        here = _count_labelled_tokens(inputs)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if num_items_in_batch is not None:
            # Gradients of the ranks are averaged afterwards.
            ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            # The mean of no tokens is NaN.
            loss = torch.where(here > 0, loss, 0.0) * here * ranks / num_items_in_batch.clamp(min=1)
        return (loss, outputs) if return_outputs else loss


class TokenTrainer(_TokenMean):
    """Trainer of token classification."""


class Seq2SeqTokenTrainer(_TokenMean, Seq2SeqTrainer):
    """Trainer of text generation."""


def _count_labelled_tokens(batch: dict[str, Any]) -> torch.Tensor:
    return batch["labels"].ne(IGNORED).sum()
