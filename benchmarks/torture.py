"""Kill pre-training again and again, go on from the last checkpoint each time as a script that restarts it would, and
compare what comes out with a run that nothing disturbed: the weights byte for byte, and every number logged.

Moments are drawn from a seed: while starting (which includes loading a checkpoint), while training, while saving (seen
by the folder aside that checkpoints are written to: the process is stopped first, and goes on to a later checkpoint if
that folder is gone by then), and while finishing, after the last checkpoint. At the moments of a fifth kind, while
training as well, all processes get SIGTERM instead of SIGKILL (`--enable_jit_checkpoint`): the run has to end with a
checkpoint of the step that it was in. The run that has finished is started once more, and must make no step.

    python benchmarks/torture.py [--kills 20] [--workers 0 2] [--no-streaming]
"""

import argparse
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modeling_a2mim.data.loading import load_images  # noqa: E402
from modeling_a2mim.export.record import PACE, PACKAGES  # noqa: E402
from modeling_a2mim.training.checkpoints import TEMPORARY, verify  # noqa: E402


STARTING, TRAINING, SAVING, TERMINATED, FINISHING = "starting", "training", "saving", "terminated", "finishing"
STOPPED = 143  # how a run ends that SIGTERM has stopped
WEIGHTS = ("model.safetensors", "pretraining/model.safetensors")
COUNT, BATCH = 120, 8
# Stochastic depth, so that the same weights need the right random state.
ENCODER = ["--architecture", "test_convnext", "--model_args", '{"drop_path_rate": 0.2}', "--image_size", "32"]
ENCODER += ["--num_channels", "1", "--mask_patch_size", "8", "--mask_site", "-3", "--learning_rate", "1e-3"]
PATIENCE = 600.0  # seconds without a new step


class Run:
    """One process of `run_pretraining.py`, in a process group of its own with its workers."""

    def __init__(self, command: list[str], output_dir: Path, log: Path):
        self.output_dir, self.log, self.started = output_dir, log, time.monotonic()
        # What a restart script does: the same command each time, which goes on if there is anything to go on from.
        command = [*command, "--output_dir", str(output_dir), "--resume_from_checkpoint", "last"]
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with open(log, "wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=env, start_new_session=True)

    @property
    def steps(self) -> int:
        """How many steps this process has logged."""
        return self.log.read_bytes().count(b"'loss'")

    def wait_for(self, happened, patience: float = PATIENCE) -> bool:
        """Until `happened()` is true, or the process has ended, which gives `False`."""
        deadline = time.monotonic() + patience
        while not happened():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                self.kill()
                raise SystemExit(f"nothing happened for {patience:.0f} s:\n{self.tail()}")
            time.sleep(0.001)
        return True

    def saves(self) -> list[Path]:
        """The folder of a checkpoint that this process is writing."""
        if not self.steps:  # what an earlier one left is still there
            return []
        try:
            names = os.listdir(self.output_dir / TEMPORARY)
        except FileNotFoundError:  # it comes and goes
            return []
        return [self.output_dir / TEMPORARY / name for name in names if not name.endswith(".old")]

    def signal(self, number: signal.Signals):
        os.killpg(self.process.pid, number)

    def kill(self) -> bool:
        """Whether there was a process left to kill."""
        self.signal(signal.SIGKILL)
        return self.process.wait() == -signal.SIGKILL

    def terminate(self) -> bool:
        """Whether SIGTERM, sent to all processes, came early enough to stop the run, which has to save what it did."""
        self.signal(signal.SIGTERM)
        if self.process.wait() in (STOPPED, -signal.SIGTERM):  # the latter after the last step
            return True
        self.finish()
        return False

    def finish(self):
        if self.process.wait() != 0:
            raise SystemExit(f"a run ended with {self.process.returncode}:\n{self.tail()}")

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])


def wait_for_moment(run: Run, kind: str, save_steps: int, startup: float, draw: random.Random, last: Path) -> bool:
    """Until the moment to kill; `False` if the run ended before."""
    if kind == STARTING:
        time.sleep(draw.uniform(0, startup))
        return True
    if kind == FINISHING:
        delay = draw.uniform(0, 0.7)  # it exports, evaluates and exports again
        if not run.wait_for(last.is_dir):
            return False
        time.sleep(delay)
        return run.process.poll() is None
    if kind in (TRAINING, TERMINATED):
        steps, delay = draw.randint(1, 2 * save_steps), draw.uniform(0, 0.1)
        if not run.wait_for(lambda: run.steps >= steps):
            return False
        time.sleep(delay)
        return True
    # One save is timed, a later one stopped: how late is drawn again, from less and less, whenever it was too late.
    if not (run.wait_for(lambda: run.steps > 0) and run.wait_for(run.saves)):
        return False
    start = time.monotonic()
    if not run.wait_for(lambda: not run.saves()):
        return False
    duration = time.monotonic() - start
    while run.wait_for(run.saves):
        time.sleep(draw.uniform(0, duration))
        run.signal(signal.SIGSTOP)
        if run.saves():
            return True
        run.signal(signal.SIGCONT)
        duration /= 2
    return False


def killed_run(
    command: list[str], folder: Path, kinds: list[str], save_steps: int, draw: random.Random, steps: int
) -> dict:
    """A run that is killed at moments of these kinds, then left to finish, and then started once more."""
    output_dir, kinds, kills, starts, startup = folder / "killed", [*kinds], [], 0, 10.0
    while True:
        run = Run(command, output_dir, folder / "killed.log")
        starts += 1
        last = output_dir / f"checkpoint-{steps}"
        while kinds and kinds[0] != FINISHING and last.is_dir():  # there are no steps left for the others
            kinds.pop(0)
        if (
            not kinds
            or not wait_for_moment(run, kinds[0], save_steps, startup, draw, last)
            or not (run.terminate() if kinds[0] == TERMINATED else run.kill())
        ):
            run.finish()
            again = Run(command, output_dir, folder / "again.log")
            again.finish()
            return {"starts": starts + 1, "kills": kills, "steps_of_a_finished_run": again.steps}
        kind = kinds.pop(0)
        if kind == TRAINING:
            startup = 0.9 * (time.monotonic() - run.started)
        checkpoints = sorted(output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        kill = {
            "moment": kind,
            "while_saving": bool(run.saves()),
            "files_aside": sorted(path.name for folder in run.saves() for path in folder.iterdir()),
            "steps_of_this_process": run.steps,
            "last_checkpoint": checkpoints[-1].name if checkpoints else None,
            "broken_checkpoints": [path.name for path in checkpoints if verify(path)],
        }
        kills.append(kill)
        print(f"  {kill}", flush=True)


def logged(output_dir: Path) -> list[dict]:
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [{k: v for k, v in entry.items() if k not in PACE} for entry in history if "loss" in entry]


def torture(args: argparse.Namespace, workers: int, folder: Path, images: Path) -> dict:
    steps = args.steps or 3 * args.save_steps * (args.kills + args.saving)
    command = [sys.executable, str(ROOT / "run_pretraining.py"), *ENCODER, "--train_dir", str(images), "--use_cpu"]
    command += ["--per_device_train_batch_size", str(BATCH), "--max_steps", str(steps), "--logging_steps", "1"]
    command += ["--save_steps", str(args.save_steps), "--save_total_limit", "3", "--disable_tqdm", "True"]
    command += ["--enable_jit_checkpoint", "--reconstruction_steps", "0", "--dataloader_num_workers", str(workers)]
    command += ["--streaming", "--shuffle_buffer_size", "50"] if args.streaming else []
    draw = random.Random(f"{args.seed} {workers}")
    starting, terminated, finishing = args.kills // 7, args.kills // 5, args.kills // 7
    others = max(0, args.kills - args.saving - starting - terminated - finishing)
    kinds = [SAVING] * args.saving + [STARTING] * starting + [TERMINATED] * terminated + [TRAINING] * others
    draw.shuffle(kinds)
    kinds += [FINISHING] * finishing
    folder.mkdir()
    undisturbed = Run(command, folder / "whole", folder / "whole.log")
    try:
        result = killed_run(command, folder, kinds, args.save_steps, draw, steps)
        undisturbed.finish()
    finally:
        if undisturbed.process.poll() is None:
            undisturbed.kill()
    whole, killed = folder / "whole", folder / "killed"
    different = [name for name in WEIGHTS if (whole / name).read_bytes() != (killed / name).read_bytes()]
    curves = logged(whole), logged(killed)
    first = next((a["step"] for a, b in zip(*curves, strict=False) if a != b), None)
    kills = result["kills"]
    return {
        "steps": steps,
        "killed": len(kills),
        "killed_while_saving": sum(kill["while_saving"] for kill in kills),
        "terminated": sum(kill["moment"] == TERMINATED for kill in kills),
        "killed_after_the_last_checkpoint": sum(kill["moment"] == FINISHING for kill in kills),
        "broken_checkpoints": sum(len(kill["broken_checkpoints"]) for kill in kills),
        "same_weights": not different,
        "same_curve": curves[0] == curves[1] and len(curves[0]) == steps,
        "logged_steps": [len(curve) for curve in curves],
        "first_different_step": first,
        **result,
    }


def passed(args: argparse.Namespace, result: dict) -> bool:
    enough = result["killed"] >= args.kills and result["killed_while_saving"] >= args.saving
    same = result["same_weights"] and result["same_curve"] and not result["steps_of_a_finished_run"]
    return enough and same and not result["broken_checkpoints"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how often, for each number of workers")
    parser.add_argument("--saving", type=int, help="how many of them at least while saving (default: a quarter)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="numbers of data loader workers")
    parser.add_argument("--streaming", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--save_steps", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of the run (default: as many as the kills may need)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the results to this JSON file")
    args = parser.parse_args(argv)
    args.saving = -(-args.kills // 4) if args.saving is None else args.saving
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        for shard in range(3):
            rows = load_images().shard(3, shard).take(COUNT // 3)
            rows.to_parquet(images / f"train-{shard}.parquet", batch_size=8)  # row groups
        for workers in args.workers:
            print(f"{workers} workers", flush=True)
            results[workers] = torture(args, workers, Path(folder) / f"workers-{workers}", images)
    print(
        "| workers | steps | kills | saving | SIGTERM | finishing | starts | broken checkpoints | weights | logged |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for workers, result in results.items():
        same = ["same" if result[name] else "DIFFERENT" for name in ("same_weights", "same_curve")]
        names = ("steps", "killed", "killed_while_saving", "terminated", "killed_after_the_last_checkpoint", "starts")
        counts = [result[name] for name in (*names, "broken_checkpoints")]
        print("|", " | ".join(map(str, [workers, *counts, *same])), "|")
    if args.output:
        shown = re.sub(r"--output\s+\S+\s*", "", " ".join(sys.argv[1:] if argv is None else argv))
        record = {
            "command": f"python benchmarks/torture.py {shown}".strip(),
            "machine": f"cpu, {os.cpu_count()} cores, {platform.system()}",
            "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
            "streaming": args.streaming,
            "workers": results,
        }
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(passed(args, result) for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
