"""What happens beside the steps of training: passes begin, pictures are written."""

from pathlib import Path

import torch
from transformers import TrainerCallback

from .analysis.reconstruction import reconstruction_picture, to_picture
from .cards import EXAMPLE, PICTURE
from .data import TrainingData
from .outputs import RECONSTRUCTIONS, clear_output_dir


class PassCallback(TrainerCallback):
    """Tells the data which pass begins."""

    def __init__(self, data: TrainingData):
        self.data, self.next = data, data.batches.resumed[0]

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.data.begin(self.next)
        self.next += 1


class OverwriteCallback(TrainerCallback):
    """Deletes what another run left in `output_dir`, if `overwrite_output_dir` says so; not before training begins, by
    when most mistakes have been found."""

    def on_train_begin(self, args, state, control, **kwargs):
        if args.overwrite_output_dir and args.should_save and state.global_step == 0:
            clear_output_dir(args.output_dir)


class ReconstructionCallback(TrainerCallback):
    """Writes pictures of the reconstructions of the same images while training goes on, and one at the end."""

    def __init__(self, batch: dict[str, torch.Tensor]):
        self.batch = batch

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if args.reconstruction_steps and state.global_step % args.reconstruction_steps == 0:
            name = f"step-{state.global_step:07d}.png"
            self._write(args, state, model, Path(args.output_dir) / RECONSTRUCTIONS / name)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self._write(args, state, model, Path(args.output_dir) / PICTURE)

    def _write(self, args, state, model, path: Path):
        picture = reconstruction_picture(model, **self.batch)  # on every process, for sharded models
        if state.is_world_process_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)


class ExampleCallback(TrainerCallback):
    """Writes the image that the Hub's widget shows."""

    def __init__(self, batch: dict[str, torch.Tensor]):
        self.pixel_values = batch["pixel_values"]

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if state.is_world_process_zero:
            config = model.config
            to_picture(self.pixel_values[0], config.image_mean, config.image_std).save(Path(args.output_dir) / EXAMPLE)
