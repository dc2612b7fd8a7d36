"""Trainer mixin with portable checkpoints, independent of sharding and number of ranks."""

import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import Trainer
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import rotate_checkpoints

from peftkit.checkpoints import files
from peftkit.checkpoints.manifest import FILE_NAME, REPLACED, CheckpointManifest, read_manifest, remove_unfinished
from peftkit.checkpoints.optimizer_state import OptimizerState, ZeroState, wrap_optimizer
from peftkit.checkpoints.rng_state import read_rng_state, set_rng_state
from peftkit.checkpoints.safetensors_writer import make_entry, write_tensors
from peftkit.distributed.process_group import wait_for_ranks
from peftkit.system.files import write_json

RNG, STATE = "rng.safetensors", "trainer_state.json"


class PortableCheckpointTrainer(Trainer):
    """Trainer mixin that replaces only the writing and reading of checkpoints.

    Attributes:
        identity: Result of `identify_run`, which every checkpoint contains.
        resumed: Checkpoints that the run was resumed from, in order.
    """

    identity: Mapping[str, Any] = {}
    resumed: Sequence[dict[str, Any]] = ()
    _epoch_rng: Mapping[str, torch.Tensor] = {}
    _training_start = 0.0
    _seconds_before = 0.0
    _resume_folder: Path | None = None

    # Writing.

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a folder under a hidden name and rename it; every rank participates, rank 0 writes."""
        self.store_flos()
        run = Path(self._get_output_dir(trial=trial))
        final = run / f"checkpoint-{self.state.global_step}"
        temporary = run / f".{final.name}"
        writes = self.args.should_save
        if writes:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self._write(temporary if writes else None)
        if writes:
            if final.exists():
                replaced = run / f".{final.name}{REPLACED}"
                shutil.rmtree(replaced, ignore_errors=True)
                final.rename(replaced)
                temporary.rename(final)
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                temporary.rename(final)
        wait_for_ranks()
        self._find_best(run)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if writes:
            limit, best = self.args.save_total_limit, self.state.best_model_checkpoint
            rotate_checkpoints(output_dir=str(run), save_total_limit=limit, best_model_checkpoint=best, use_mtime=True)

    def _find_best(self, run: Path) -> None:
        best = run / f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step and best.is_dir():
            self.state.best_model_checkpoint = str(best)

    def _wrap_optimizer(self) -> OptimizerState:
        assert self.model is not None
        return wrap_optimizer(self.optimizer, self.model)

    def _find_scaler(self, state: OptimizerState) -> Any:
        if isinstance(state, ZeroState):
            return getattr(state.zero, "loss_scaler", None)
        return getattr(self.accelerator, "scaler", None)

    def _write(self, folder: Path | None) -> None:
        """Collect the shards of every rank and write them to `folder`, if given."""
        model: Any = self.model
        state = self._wrap_optimizer()
        files.write_weights(folder, model, state)
        if not self.args.save_only_model:
            files.write_optimizer(folder, model, state)
            self._write_rng(folder)
        if folder is None:
            return
        if not self.args.save_only_model:
            files.write_schedule(folder, self.lr_scheduler)
            files.write_scaler(folder, self._find_scaler(state))
        # As in the Trainer: the trainer state includes the state of callbacks.
        for one in [*self.callback_handler.callbacks, self.control]:
            if isinstance(one, ExportableState):
                self.state.stateful_callbacks[type(one).__name__] = one.state()  # type: ignore[index, call-overload]
        # The step identifies the best checkpoint; its path may differ on another machine.
        dataclasses.replace(self.state, best_model_checkpoint=None).save_to_json(str(folder / STATE))
        write_json(folder / FILE_NAME, dataclasses.asdict(self._build_manifest(folder)))

    def _build_manifest(self, folder: Path) -> CheckpointManifest:
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        config = {} if plugin is None else plugin.deepspeed_config.get("zero_optimization", {})
        devices = {part: (config.get(f"offload_{part}") or {}).get("device") for part in ("optimizer", "param")}
        return CheckpointManifest(
            step=self.state.global_step, processes=self.args.world_size,
            zero_stage=None if plugin is None else config.get("stage", 0),
            offload=[part for part, device in devices.items() if device not in (None, "none")],
            per_rank_batch=self._train_batch_size * self.args.gradient_accumulation_steps,
            resumable=not self.args.save_only_model, seconds=time.time() - self._training_start, recipe=self.identity,
            resumed=list(self.resumed), files={path.name: path.stat().st_size for path in folder.iterdir()},
        )  # fmt: skip

    def _write_rng(self, folder: Path | None) -> None:
        """Write the RNG state of every rank, now and at the start of the epoch, and the loss not yet logged."""
        own = {f"now.{name}": value for name, value in read_rng_state().items()}
        own |= {f"epoch.{name}": value for name, value in self._epoch_rng.items()}
        own["loss"] = self._tr_loss.detach().cpu()
        every: list[Any] = [own]
        if self.args.world_size > 1:
            every = [None] * self.args.world_size
            torch.distributed.all_gather_object(every, own)
        if folder is not None:
            logged = {
                "total_loss": torch.tensor(self._total_loss_scalar, dtype=torch.float64),
                "last_logged": torch.tensor(self._globalstep_last_logged),
            }
            named = {f"{rank}.{name}": value for rank, one in enumerate(every) for name, value in one.items()}
            write_tensors(folder / RNG, [make_entry(name, value) for name, value in (named | logged).items()])

    # Reading.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Do nothing: `_prepare_for_training` loads the weights when the model is on the device."""

    def _init_training_state(
        self, max_steps: int, per_epoch: int, epochs: int, resume_from_checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """Initialize like the Trainer, with the logging intervals of this run, and find the best checkpoint."""
        found = super()._init_training_state(max_steps, per_epoch, epochs, resume_from_checkpoint, trial)
        self.state.compute_steps(self.args, max_steps)
        if resume_from_checkpoint is not None:
            self._find_best(Path(resume_from_checkpoint).parent)
        return found

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """Prepare like the Trainer without a checkpoint, then read the files of the checkpoint."""
        if self.args.should_save:
            remove_unfinished(Path(self._get_output_dir(trial=None)))
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint is not None:
            folder = self._resume_folder = Path(resume_from_checkpoint)
            self._seconds_before = read_manifest(folder).seconds
            model: Any = self.model
            state = self._wrap_optimizer()
            files.read_optimizer(folder, model, state)
            files.read_weights(folder, model, state)
            files.read_schedule(folder, self.lr_scheduler)
            files.read_scaler(folder, self._find_scaler(state))
        return prepared

    def _load_best_model(self) -> None:
        """Read the weights of the best checkpoint into the model."""
        model: Any = self.model
        files.read_weights(Path(str(self.state.best_model_checkpoint)), model, self._wrap_optimizer())

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore the RNG state of this rank from the checkpoint; a new rank gets the state of rank 0."""
        if checkpoint is not None:
            set_rng_state(self._read_rank_state(Path(checkpoint), "now."))

    def _read_rank_state(self, folder: Path, prefix: str) -> dict[str, torch.Tensor]:
        with safe_open(folder / RNG, framework="pt") as file:
            names = list(file.keys())
            rank = self.args.process_index if f"{self.args.process_index}.now.torch" in names else 0
            start = f"{rank}.{prefix}"
            return {name.removeprefix(start): file.get_tensor(name) for name in names if name.startswith(start)}

    def _run_epoch(self, **options: Any) -> None:  # type: ignore[override]
        """Run the epoch from the step of the checkpoint; stop if all steps are complete."""
        options["start_time"] -= self._seconds_before
        self._training_start = options["start_time"]
        folder = self._restore_sums()
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        if folder is not None:
            # The row order of an epoch may depend on the RNG state at the start of the epoch.
            within = options["steps_trained_in_current_epoch"] > 0
            set_rng_state(self._read_rank_state(folder, "epoch." if within else "now."))
        self._epoch_rng = read_rng_state()
        super()._run_epoch(**options)

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        """Finalize like the Trainer, with the times of the whole run."""
        self._restore_sums()
        return super()._finalize_training(trial, num_train_samples, start_time - self._seconds_before)

    def _restore_sums(self) -> Path | None:
        """Restore the sums of loss and steps once; return the checkpoint that contains them."""
        folder, self._resume_folder = self._resume_folder, None
        if folder is None:
            return None
        manifest = read_manifest(folder)
        with safe_open(folder / RNG, framework="pt") as file:
            same = manifest.processes == self.args.world_size
            ranks = [self.args.process_index] if same else range(manifest.processes)
            # With another number of ranks each rank gets the mean: the mean over ranks stays the same.
            pending = torch.stack([file.get_tensor(f"{rank}.loss") for rank in ranks]).mean()
            self._tr_loss = pending.to(self.args.device)
            self._total_loss_scalar = file.get_tensor("total_loss").item()
            self._globalstep_last_logged = file.get_tensor("last_logged").item()
        self._initial_global_step, self._initial_num_input_tokens_seen = 0, 0
        return folder
