"""What `ResumableTrainer` relies on in transformers, of any release from the lowest on, and that it is the only class
that relies on private names; and that it resumes a model that is not of this package."""

import ast
import importlib
import inspect
import pickle
import pkgutil
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import seed_worker

import modeling_a2mim
from modeling_a2mim.data.dataset import ImageSamples
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.training import resumable
from modeling_a2mim.training.preemption import start_worker
from modeling_a2mim.training.resumable import ResumableTrainer
from modeling_a2mim.training.seeded_reads import SeededReads
from modeling_a2mim.training.trainer import A2MIMTrainer


pytestmark = pytest.mark.usefixtures("one_thread")

PACKAGE = Path(modeling_a2mim.__file__).parent
PRIVATE = {name for name in vars(Trainer) if re.match("_[a-z]", name)}
# Also what Trainer sets on itself: no attribute of ours may have such a name.
PRIVATE |= set(re.findall(r"self\.(_[a-z]\w*) *(?::[^=\n]+)?= ", inspect.getsource(Trainer)))

# Parameters of what is overridden or called.
SIGNATURES = {
    "_get_grad_norm": "model grad_norm",
    "_get_learning_rate": "",
    "_get_output_dir": "trial",
    "_init_training_state": "max_steps num_update_steps_per_epoch num_train_epochs resume_from_checkpoint trial",
    "_load_best_model": "",
    "_load_optimizer_and_scheduler": "checkpoint",
    "_load_scaler": "checkpoint",
    "_prepare_inputs": "inputs",
    "_push_from_checkpoint": "checkpoint_folder",
    "_save": "output_dir state_dict",
    "_save_checkpoint": "model trial",
    "compute_loss": "model inputs return_outputs num_items_in_batch",
    "compute_loss_context_manager": "",
    "create_scheduler": "num_training_steps optimizer",
    "get_batch_samples": "epoch_iterator num_batches device",
    "save_model": "output_dir _internal_call",
    "set_initial_training_values": "args dataloader",
    "training_step": "model inputs num_items_in_batch",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    assert " ".join(list(inspect.signature(getattr(Trainer, name)).parameters)[1:]) == SIGNATURES[name]


def test_the_private_names_in_use_are_those_pinned():
    methods = {name for name in vars(ResumableTrainer) if name in PRIVATE and callable(vars(ResumableTrainer)[name])}
    called = {"_prepare_inputs"}
    assert methods | called == {name for name in SIGNATURES if name.startswith("_")}
    used = PRIVATE & set(re.findall(r"\.(_[a-z]\w*)", inspect.getsource(resumable)))
    assert used <= methods | called | {"_created_lr_scheduler", "_eval_dataloaders"}


def trainer_classes() -> set[type]:
    """Every class of the package that inherits from Trainer."""
    for module in pkgutil.walk_packages([str(PACKAGE)], "modeling_a2mim."):
        path = PACKAGE.joinpath(*module.name.split(".")[1:])
        source = (path / "__init__.py" if module.ispkg else path.with_suffix(".py")).read_text()
        if re.search(r"^class \w+\(.*Trainer\b", source, re.MULTILINE):
            importlib.import_module(module.name)
    found, new = set(), {Trainer}
    while new:
        new = {
            cls for parent in new for cls in parent.__subclasses__() if cls.__module__.startswith("modeling_a2mim.")
        }
        found |= new
    return found


def test_no_other_class_uses_private_names_of_trainer():
    classes = trainer_classes()
    names = {cls.__name__ for cls in classes}
    assert {"A2MIMTrainer", "FineTuningTrainer", "SegmentationTrainer", "DetectionTrainer"} <= names
    # What is fine-tuned is not pre-trained.
    assert not [cls.__name__ for cls in classes - {A2MIMTrainer} if issubclass(cls, A2MIMTrainer)]
    for cls in classes - {ResumableTrainer}:
        assert issubclass(cls, ResumableTrainer), cls
        assert not PRIVATE & set(vars(cls)), cls
        assert not PRIVATE & set(re.findall(r"\.(_[a-z]\w*)", inspect.getsource(cls))), cls
    for path in PACKAGE.rglob("*.py"):
        used = re.findall(r"trainer\.(_[a-z]\w*)", path.read_text())
        assert not PRIVATE & set(used), path


def test_it_knows_nothing_of_the_method():
    tree = ast.parse(Path(resumable.__file__).read_text())
    modules = {"." * n.level + (n.module or "") for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level}
    assert {name for name in modules if name.startswith("..")} == {
        *("..arguments.trainer_fields", "..data.dataset", "..data.fingerprints", "..data.progress", "..utils.files")
    }
    assert len(Path(resumable.__file__).read_text().splitlines()) <= 450


# What Trainer does, in which order


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x, labels=None):
        return {"loss": (self.layer(x).squeeze(-1) - labels).square().mean()}


ROWS = [{"x": torch.tensor([float(i), 1.0]), "labels": torch.tensor(0.0)} for i in range(10)]
METHODS = [
    *("get_train_dataloader", "set_initial_training_values", "_init_training_state", "create_scheduler", "_save"),
    *("_load_optimizer_and_scheduler", "_load_scaler", "get_batch_samples", "training_step", "_get_grad_norm"),
    *("_save_checkpoint", "save_model", "_push_from_checkpoint", "_load_best_model", "_get_output_dir"),
    *("_finish_current_push", "_load_from_checkpoint", "evaluate"),
]
EVENTS = ("on_train_begin", "on_epoch_begin", "on_pre_optimizer_step", "on_step_end", "on_save", "on_train_end")


def watched(folder, **kwargs):
    """transformers' own Trainer, the list of what it calls, and what these calls return."""
    calls, returned = [], {}

    def method(name):
        def call(self, *args, **kwargs):
            calls.append(name)
            returned[name] = getattr(Trainer, name)(self, *args, **kwargs)
            calls.append(f"/{name}")
            return returned[name]

        return call

    def event(name):
        return lambda self, *args, **kwargs: calls.append(name)

    watch = type("Watch", (TrainerCallback,), {name: event(name) for name in EVENTS})
    defaults = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 3}
    defaults |= {"save_strategy": "steps", "save_steps": 3, "use_cpu": True, "disable_tqdm": True, "report_to": "none"}
    args = TrainingArguments(output_dir=str(folder), **{**defaults, **kwargs})
    cls = type("Watched", (Trainer,), {name: method(name) for name in METHODS})
    return cls(Linear(), args, train_dataset=ROWS, eval_dataset=ROWS, callbacks=[watch()]), calls, returned


def within(calls: list[str], name: str) -> list[str]:
    """What is called in the first call of this name, without what that calls in turn."""
    found, depth = [], 0
    start = calls.index(name) + 1
    for call in calls[start : calls.index(f"/{name}", start)]:
        if call.startswith("/"):
            depth -= 1
        elif not depth:
            found.append(call)
        depth += f"/{call}" in calls
    return found


def test_the_order_of_a_run(tmp_path):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 3}
    trainer, calls, returned = watched(tmp_path, **best)
    trainer.train()
    # (epochs, steps of an epoch, ..., all steps) and (epoch to begin with, batches of it to leave out)
    assert returned["set_initial_training_values"] == (3, 2, 10, 30, 8, 3, 6)
    assert returned["_init_training_state"] == (0, 0)
    begun = [call for call in calls[: calls.index("on_train_begin")] if not call.startswith("/")]
    assert begun == [
        *("get_train_dataloader", "set_initial_training_values", "_init_training_state", "create_scheduler")
    ]
    # A step: its batches, then the norm of the gradient, before the weights change.
    step = calls[calls.index("on_epoch_begin") + 1 : calls.index("on_step_end") + 1]
    assert [call for call in step if not call.startswith("/")] == [
        *("get_batch_samples", "training_step", "training_step", "_get_grad_norm"),
        *("on_pre_optimizer_step", "on_step_end"),
    ]
    # A checkpoint, after its evaluation; `on_save` comes when it is written.
    assert within(calls, "_save_checkpoint") == ["_get_output_dir", "save_model"]
    assert within(calls, "save_model") == ["_save"]
    assert calls[calls.index("_save_checkpoint") - 1] == "/evaluate"
    assert calls[calls.index("/_save_checkpoint") + 1] == "on_save"
    # The end: the best weights, then the callbacks, then what is left to push.
    end = [call for call in calls[calls.index("_load_best_model") :] if not call.startswith("/")]
    assert end == ["_load_best_model", "_get_output_dir", "on_train_end", "_finish_current_push"]


def test_the_order_of_a_run_that_resumes(tmp_path):
    watched(tmp_path)[0].train()
    trainer, calls, returned = watched(tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert returned["_init_training_state"] == (1, 2)  # step 3 was the first of 2 in the second epoch
    begun = [call for call in calls[: calls.index("on_train_begin")] if not call.startswith("/")]
    assert begun == [
        *("_load_from_checkpoint", "get_train_dataloader", "set_initial_training_values", "_init_training_state"),
        *("create_scheduler", "_load_optimizer_and_scheduler", "_load_scaler"),
    ]
    assert calls.count("training_step") == 4  # batches: 1 of the second epoch, 3 of the third
    assert (trainer.state.global_step, trainer.state.epoch) == (6, 3)


def test_a_checkpoint_is_written_to_the_output_dir_that_trainer_asks_for(tmp_path):
    """All of it, and it is asked for again for each."""

    class Elsewhere(Trainer):
        def _get_output_dir(self, trial):
            return str(tmp_path / "elsewhere")

    args = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=2, save_steps=1, use_cpu=True, report_to="none"
    )
    Elsewhere(Linear(), args, train_dataset=ROWS).train()
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["checkpoint-1", "checkpoint-2"]
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_schedule_of_ones_own_is_made_anew_by_each_run(tmp_path):
    class Own(ResumableTrainer):
        def own_scheduler(self, optimizer, steps):
            return LambdaLR(optimizer, lambda step: 1 - step / steps)

    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, logging_steps=1, save_strategy="no", use_cpu=True, report_to="none"
    )
    trainer = Own(Linear(), args, train_dataset=ROWS)
    for _ in range(2):
        trainer.train()
        rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
        assert rates == [args.learning_rate, args.learning_rate / 2]


# A model that is none of this package, with transformers' arguments


class Classifier(PreTrainedModel):
    config_class = PreTrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer, self.dropout = nn.Linear(64, 10), nn.Dropout(0.2)
        self.post_init()

    def forward(self, pixel_values, labels=None):
        logits = self.layer(self.dropout(pixel_values.flatten(1)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Noise:
    """A transform that draws from torch's generator, so that a sample is the same only for the same key."""

    def __call__(self, image):
        return {"pixel_values": torch.rand(1, 8, 8)}


class Crash(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise KeyboardInterrupt


def other_trainer(folder, callbacks=None, **kwargs):
    torch.manual_seed(0)
    samples = ImageSamples(load_images().select(range(20)), Noise(), "image", "label")
    defaults = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "save_steps": 3, "learning_rate": 1e-2}
    args = TrainingArguments(
        output_dir=str(folder), use_cpu=True, disable_tqdm=True, report_to="none", **{**defaults, **kwargs}
    )
    return ResumableTrainer(Classifier(PreTrainedConfig()), args, train_dataset=samples, callbacks=callbacks)


@pytest.mark.parametrize("workers", [0, 2])
def test_another_model_resumes_exactly(tmp_path, workers):
    whole = other_trainer(tmp_path / "whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        other_trainer(tmp_path / "cut", [Crash()]).train()
    resumed = other_trainer(tmp_path / "cut", dataloader_num_workers=workers)
    resumed.train(resume_from_checkpoint="last")
    assert resumed.resumed_from == str(tmp_path / "cut" / "checkpoint-3")
    assert resumed.state.global_step == 10
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())
    assert not list((tmp_path / "cut").rglob("training_args.bin"))


class Drawn(torch.utils.data.Dataset):
    """Samples that draw from the global generators."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        noise = torch.rand(1, 8, 8) + random.random() + np.random.rand()
        return {"pixel_values": noise + index, "labels": index % 10}


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.ci)])
def test_own_samples_that_draw_at_random_resume_exactly(tmp_path, workers, rows):
    def trainer(*args, **kwargs):
        made = other_trainer(*args, dataloader_num_workers=workers, num_train_epochs=2, **kwargs)
        made.train_dataset = Drawn()
        if rows:
            made.train_dataset = Dataset.from_dict({"index": list(range(20))}).with_transform(
                lambda batch: {"pixel_values": [torch.rand(1, 8, 8) for _ in batch["index"]], "labels": batch["index"]}
            )
            made.compute_loss = lambda model, inputs, **_: model(inputs["pixel_values"], inputs["labels"] % 10)["loss"]
        return made

    whole = trainer(tmp_path / "whole", save_steps=7)
    whole.train()
    torch.manual_seed(5)
    for stop in (3, 7):
        resumed = trainer(tmp_path / f"cut-{stop}", save_steps=stop, max_steps=-1)
        resumed.add_callback(StopAt(stop))
        resumed.train()
        resumed = trainer(tmp_path / f"cut-{stop}", save_steps=stop)
        random.seed(stop), np.random.seed(stop)
        resumed.train(resume_from_checkpoint="last")
        expected = whole.model.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


def test_seeded_reads_have_what_their_samples_have():
    """For samplers of the user's, and in workers."""
    samples = Drawn()
    samples.weights = [1.0, 2.0]
    reads = pickle.loads(pickle.dumps(SeededReads(samples, 0)))
    assert (reads.weights, len(reads)) == ([1.0, 2.0], len(samples))
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = reads.other


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def test_workers_begin_as_trainers(tmp_path, monkeypatch):
    assert list(inspect.signature(seed_worker).parameters) == ["worker_id", "num_workers", "rank"]
    loader = other_trainer(tmp_path, dataloader_num_workers=2, dataloader_prefetch_factor=3).get_train_dataloader()
    assert loader.worker_init_fn.func is start_worker
    assert loader.worker_init_fn.keywords == {"num_workers": 2, "rank": 0, "ignores_sigterm": False}
    assert (loader.num_workers, loader.prefetch_factor, loader.in_order) == (2, 3, True)
    seeded = []
    monkeypatch.setattr("transformers.trainer_utils.set_seed", seeded.append)
    torch.manual_seed(5)
    for worker in range(2):
        loader.worker_init_fn(worker)  # in a worker, `torch.initial_seed` differs
    assert seeded == [5, 5]
