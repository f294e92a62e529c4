"""What happens beside the steps of training: logs and figures are written, time is taken."""

import contextlib
import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from ..analysis.reconstruction import plot_reconstructions
from ..evaluation.class_figures import class_figure
from ..export.filenames import EXAMPLE, PICTURE
from ..utils.files import finite
from ..utils.plotting import to_pil_image
from .outputs import METRICS, RECONSTRUCTIONS, clear_output_dir


class OverwriteCallback(TrainerCallback):
    """Deletes what another run left in `output_dir`, with `overwrite_output_dir`; only when training begins, by when
    most mistakes have been found."""

    def on_train_begin(self, args, state, control, **kwargs):
        if args.overwrite_output_dir and args.should_save and state.global_step == 0:
            clear_output_dir(args.output_dir)


class BeginCallback(TrainerCallback):
    """Does something once training begins, when all that can be wrong with the settings was said.

    Args:
        action: what to do.
    """

    def __init__(self, action: Callable[[], None]):
        self.action = action

    def on_train_begin(self, args, state, control, **kwargs):
        self.action()


class MetricsCallback(TrainerCallback):
    """Writes the log of training to `output_dir/metrics.jsonl`, one JSON object a line. A run that resumes rewrites
    what was logged up to its checkpoint, and appends to it."""

    path: Path | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.path = Path(args.output_dir, METRICS)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = self.path.with_name(f"{METRICS}.new")
            new.write_text("".join(map(json_line, state.log_history)))
            os.replace(new, self.path)

    def on_log(self, args, state, control, **kwargs):
        if self.path is not None:
            with open(self.path, "a") as file:
                file.write(json_line(state.log_history[-1]))


def json_line(entry: dict) -> str:
    """An entry of a log as a line of JSON; NaN and infinity, which JSON lacks, become null."""
    return json.dumps(finite(entry), sort_keys=True) + "\n"  # as a checkpoint has them


class PaceCallback(TrainerCallback):
    """Measures the speed of a run, from step `first_step` on, for its logs.

    Attributes:
        images: that this process has trained on since the last log.
        logged: that it had trained on by then.
        waited: seconds that it has waited for images since the last log.
    """

    def __init__(self, first_step: int = 0):
        self.begun = self.last = perf_counter()
        self.first_step, self.images, self.logged, self.waited = first_step, 0, 0, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.__init__(state.global_step)

    @contextlib.contextmanager
    def waiting(self):
        """Count the time of a `with` block as waiting for images."""
        start = perf_counter()
        yield
        self.waited += perf_counter() - start

    def figures(self, state, accelerator) -> dict[str, float]:
        """The speed since the last call, over all processes, each of which must call it.

        Returns:
            `images_per_second`; `data_wait`, the share (0 to 1) of the time that the slowest process waited for
            images; `time_left` in seconds, at the mean speed of the run. The time of evaluating and saving counts.
        """
        now = perf_counter()
        seconds = max(now - self.last, 1e-9)
        counts = torch.tensor([[self.images, self.waited]], device=accelerator.device)
        images, waited = accelerator.gather(counts).unbind(1)
        done = max(1, state.global_step - self.first_step)
        self.last, self.logged, self.images, self.waited = now, self.logged + self.images, 0, 0.0
        return {
            "images_per_second": round(images.sum().item() / seconds, 2),
            "data_wait": round(min(1.0, waited.max().item() / seconds), 4),
            "time_left": round((state.max_steps - state.global_step) * (now - self.begun) / done, 1),
        }

    def trained(self, accelerator) -> int:
        """The images that all processes have trained on since training began here; each must call it."""
        images = torch.tensor([self.logged + self.images], device=accelerator.device)
        return int(accelerator.gather(images).sum())


class _Readable:
    def on_log(self, args, state, control, logs=None, **kwargs):
        logs = {name: value for name, value in logs.items() if class_figure(name) is None}
        if "time_left" in logs:
            logs = {**logs, "time_left": str(datetime.timedelta(seconds=round(logs["time_left"])))}
        super().on_log(args, state, control, logs=logs, **kwargs)


class ReadableProgress(_Readable, ProgressCallback):
    """transformers' progress bar, with `time_left` as `0:12:34`, and without the figures of single classes."""


class ReadablePrinter(_Readable, PrinterCallback):
    """transformers' printed logs (`--disable_tqdm`), with `time_left` as `0:12:34`."""


class ReconstructionCallback(TrainerCallback):
    """Writes figures of the reconstructions of the same images while training goes on, and one at the end."""

    def __init__(self, batch: dict[str, torch.Tensor], names: list[str] | None = None):
        self.batch: dict[str, Any] = batch
        self.names = names

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if args.reconstruction_steps and state.global_step % args.reconstruction_steps == 0:
            name = f"step-{state.global_step:07d}.png"
            self._write(args, state, model, Path(args.output_dir) / RECONSTRUCTIONS / name)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self._write(args, state, model, Path(args.output_dir) / PICTURE)

    def _write(self, args, state, model, path: Path):
        figure = plot_reconstructions(model, **self.batch, names=self.names)  # on every process, for sharded models
        if state.is_world_process_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.save(path)


class ExampleCallback(TrainerCallback):
    """Writes the image that the Hub's widget shows."""

    def __init__(self, batch: dict[str, torch.Tensor]):
        self.pixel_values = batch["pixel_values"]

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if state.is_world_process_zero:
            config, pixels = model.config, self.pixel_values[0]
            like = None if config.value_range is None else pixels
            shown = to_pil_image(pixels, config.image_mean, config.image_std, config.display_channels, like)
            shown.save(Path(args.output_dir) / EXAMPLE)
