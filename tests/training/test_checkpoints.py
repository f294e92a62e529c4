"""Checkpoints: killed while they are written, damaged later, of another model, on two processes; and no secrets."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
import transformers
from huggingface_hub import constants, get_token
from packaging.version import Version
from safetensors.torch import load_file
from torch import distributed
from transformers import TrainerState

import run_pretraining
from benchmarks import torture
from modeling_a2mim import A2MIMConfig, A2MIMForImageClassification, A2MIMForPreTraining
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.export.loading import load_pretraining_model
from modeling_a2mim.export.record import PACE
from modeling_a2mim.training import checkpoints
from modeling_a2mim.training.checkpoints import (
    MANIFEST,
    TEMPORARY,
    check_settings,
    find_checkpoint,
    newest_first,
    read_manifest,
    verify,
)
from modeling_a2mim.training.endings import how_to_resume
from modeling_a2mim.training.outputs import METRICS, check_output_dir
from modeling_a2mim.training.trainer import A2MIMTrainer

from ..processes import in_a_new_process, in_two_processes
from .test_trainer import CONFIG, Crash, losses, make_trainer, weights


pytestmark = pytest.mark.usefixtures("one_thread")
FILES = ["config.json", "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"]
STEPS = 5


def train(folder, *args, resume=None, steps=STEPS, **kwargs):
    trainer = make_trainer(folder, *args, max_steps=steps, shown=0, **kwargs)
    if resume:
        torch.manual_seed(99)  # must not matter
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def assert_same(trainer, expected):
    assert trainer.state.global_step == STEPS
    found, expected_weights = weights(trainer), weights(expected)
    assert all(torch.equal(value, expected_weights[name]) for name, value in found.items())
    assert losses(trainer) == losses(expected)


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    trainer = make_trainer(tmp_path_factory.mktemp("whole"), max_steps=STEPS, shown=0)
    trainer.train()
    return trainer


@pytest.fixture
def saved(whole, tmp_path):
    """A copy of the checkpoints of an uninterrupted run."""
    return Path(shutil.copytree(whole.args.output_dir, tmp_path / "saved"))


# What is written


def test_a_checkpoint_and_its_record(whole):
    folder = Path(whole.args.output_dir)
    assert names(folder) == [f"checkpoint-{step}" for step in range(1, STEPS + 1)]
    for checkpoint in folder.glob("checkpoint-*"):
        assert sorted(path.name for path in checkpoint.iterdir()) == sorted([*FILES, MANIFEST])
        assert verify(checkpoint) == []
        record = read_manifest(checkpoint)
        assert sorted(record["files"]) == FILES
        assert {"torch", "transformers"} <= record["versions"].keys()
        assert record["settings"]["mask_ratio"] == 0.6


def test_folders_are_recorded_too(tmp_path):
    """FSDP and DeepSpeed write folders of files."""
    folder = tmp_path / TEMPORARY / "checkpoint-1"
    (folder / "optimizer_0" / "shards").mkdir(parents=True)
    (folder / "optimizer_0" / "shards" / "__0_0.distcp").write_bytes(bytes(3 << 20))
    model = A2MIMForPreTraining(A2MIMConfig(**CONFIG))
    data = {"position": [1, 2.5, None]}
    checkpoints.complete(folder, tmp_path / "checkpoint-1", model, data)
    assert names(tmp_path) == ["checkpoint-1"]
    assert verify(tmp_path / "checkpoint-1") == []
    assert read_manifest(tmp_path / "checkpoint-1")["data"] == data
    (tmp_path / "checkpoint-1" / "optimizer_0" / "shards" / "__0_0.distcp").unlink()
    assert verify(tmp_path / "checkpoint-1") == ["optimizer_0/shards/__0_0.distcp is missing"]


# Killed while saving: the last call, the end of a path that it is given, and whether the kill came before it, after it
# or when a file was half written.

MOMENTS = {
    "before anything": (A2MIMTrainer, "_save", "", "before"),
    "half of the model": (A2MIMTrainer, "_save", "", "half/model.safetensors"),
    "after the model": (A2MIMTrainer, "_save", "", "after"),
    "half of the optimiser": (torch, "save", "optimizer.pt", "half"),
    "after the optimiser": (torch, "save", "optimizer.pt", "after"),
    "after the scheduler": (torch, "save", "scheduler.pt", "after"),
    "after the random state": (torch, "save", "rng_state.pth", "after"),
    "after Trainer's state": (TrainerState, "save_to_json", "trainer_state.json", "after"),
    "half of the record": (Path, "write_text", MANIFEST, "half"),
    "after the record": (checkpoints, "_rename", "", "before"),
    "after the rename": (os, "rename", "", "after"),
    "before what is old is deleted": (checkpoints, "remove_leftovers", "", "before"),
}


@contextlib.contextmanager
def killed_at(moment, step):
    """The call of `MOMENTS` that has to do with this step is the last one."""
    owner, function, file, when = MOMENTS[moment]
    original, name = getattr(owner, function), f"checkpoint-{step}"

    def killed(*args, **kwargs):
        paths = [str(arg) for arg in args if isinstance(arg, (str, Path))]
        path = next((p for p in paths if (name in p or os.path.exists(f"{p}/{name}")) and p.endswith(file)), None)
        if path is None:
            return original(*args, **kwargs)
        if when != "before":
            original(*args, **kwargs)
        if when.startswith("half"):
            cut = Path(path + when.removeprefix("half"))
            os.truncate(cut, cut.stat().st_size // 2)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, function, killed)
        with pytest.raises(KeyboardInterrupt):
            yield


MUCH_ALIKE = ("half of the optimiser", "after the optimiser", "after the scheduler", "after the random state")


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "moment", [pytest.param(m, marks=[pytest.mark.slow] if m in MUCH_ALIKE else []) for m in MOMENTS]
)
def test_killed_while_saving(whole, tmp_path, moment):
    with killed_at(moment, 3):
        train(tmp_path)
    for name in names(tmp_path):
        assert name == TEMPORARY or verify(tmp_path / name) == []
    recorded = list(MOMENTS).index(moment) >= list(MOMENTS).index("after the record")
    found = find_checkpoint("last", str(tmp_path))
    assert Path(found).name == ("checkpoint-3" if recorded else "checkpoint-2")
    assert_same(train(tmp_path, resume="last"), whole)
    assert names(tmp_path) == names(whole.args.output_dir)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("moment", "broken"),
    [
        ("after Trainer's state", False),
        ("after Trainer's state", True),
        ("after the record", True),
        ("after the rename", False),
        ("before what is old is deleted", True),
    ],
)
def test_killed_while_replacing(whole, saved, moment, broken):
    """A checkpoint of the same number is there already: at no moment there is neither the old nor the new one."""
    for later in (4, 5):
        shutil.rmtree(saved / f"checkpoint-{later}")
    if broken:
        os.truncate(saved / "checkpoint-3" / "optimizer.pt", 100)
    with killed_at(moment, 3):
        train(saved, resume=str(saved / "checkpoint-2"))
    assert ("checkpoint-3" in names(saved)) == (moment != "after the rename")  # which is the first of two, here
    for number in (1, 2):  # or else anything would do
        shutil.rmtree(saved / f"checkpoint-{number}")
    if broken and moment == "after Trainer's state":
        with pytest.raises(ValueError, match=r"holds no complete checkpoint; checkpoint-3 cannot .* optimizer\.pt is"):
            find_checkpoint("last", str(saved))
        return
    assert_same(train(saved, resume="last"), whole)
    assert names(saved) == ["checkpoint-3", "checkpoint-4", "checkpoint-5"]


@pytest.mark.slow
def test_killed_with_sigkill_while_saving(tmp_path):
    """`benchmarks/torture.py` for a short time: the script itself, and one kill."""
    output = tmp_path / "torture.json"
    options = [
        "--kills",
        "1",
        "--saving",
        "1",
        "--workers",
        "0",
        "--no-streaming",
        "--save_steps",
        "1",
        "--steps",
        "20",
    ]
    assert torture.main([*options, "--output", str(output)]) == 0
    result = json.loads(output.read_text())["workers"]["0"]
    assert result["killed_while_saving"] == 1
    assert (result["same_weights"], result["same_curve"]) == (True, True)


# Damaged afterwards


def damage(path, how):
    content = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[:-2])
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


@pytest.mark.parametrize("how", ["deleted", "truncated", "emptied", "flipped"])
@pytest.mark.parametrize("file", [*FILES, MANIFEST])
def test_damage_is_found_and_named(saved, caplog, file, how):
    damage(saved / "checkpoint-5" / file, how)
    said = {
        "deleted": f"{file} is missing",
        "truncated": f"{file} is truncated: ",
        "emptied": f"{file} is truncated: 0 of ",
        "flipped": f"{file} does not have the recorded checksum",
    }[how]
    if file == MANIFEST:
        said = "has no checkpoint.json: it was not completed" if how == "deleted" else "checkpoint.json is damaged"
    assert said in verify(saved / "checkpoint-5")[0]
    if how != "flipped":  # needs no checksums
        assert find_checkpoint("last", str(saved)).endswith("checkpoint-4")
    assert not caplog.records
    for value in ("last", str(saved)):
        caplog.clear()
        assert find_checkpoint(value, str(saved), thorough=True).endswith("checkpoint-4")
        assert said in caplog.text
        assert "checkpoint-5 cannot be used: " in caplog.text
        assert "going on from checkpoint-4" in caplog.text
    with pytest.raises(ValueError, match="^resume_from_checkpoint: .*checkpoint-5 cannot be used: ") as error:
        find_checkpoint(str(saved / "checkpoint-5"), "", thorough=True)
    assert said in str(error.value)
    assert str(error.value).endswith(f"; the last complete one beside it is {saved / 'checkpoint-4'}")


def test_every_byte_of_a_record_counts(saved):
    """Its own checksum covers what it says of the data, too."""
    path = saved / "checkpoint-5" / MANIFEST
    record = json.loads(path.read_text())
    for key in record:
        path.write_text(json.dumps({**record, key: "other"}))
        assert verify(saved / "checkpoint-5")[0].startswith(f"{MANIFEST} is damaged")
    for content in ("[1]", '"text"', "null", "{}", "\x00" * 20, "{\udcff".encode("utf-8", "surrogatepass")):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        assert verify(saved / "checkpoint-5")[0].startswith(f"{MANIFEST} is damaged")


def test_training_goes_on_from_the_last_complete_one(whole, saved, caplog):
    damage(saved / "checkpoint-5" / "optimizer.pt", "flipped")
    damage(saved / "checkpoint-4" / "rng_state.pth", "deleted")
    assert_same(train(saved, resume="last"), whole)
    assert "checkpoint-4 cannot be used: rng_state.pth is missing; going on from checkpoint-3" in caplog.text
    assert all(verify(saved / name) == [] for name in names(saved))
    for name in names(saved):
        damage(saved / name / "scheduler.pt", "truncated")
    with pytest.raises(ValueError, match=r"holds no complete checkpoint; checkpoint-5 .* checkpoint-1 cannot be used"):
        train(saved, resume="last")


def test_checkpoints_to_resume_from(saved, tmp_path):
    assert find_checkpoint(None, str(tmp_path)) is None
    assert find_checkpoint("False", str(tmp_path)) is None
    with pytest.raises(ValueError, match="^resume_from_checkpoint: there is no folder .*nothing"):
        find_checkpoint(str(tmp_path / "nothing"), "")
    with pytest.raises(ValueError, match="no folder latest; .* has checkpoint-5, .*; `last` is the last one"):
        find_checkpoint("latest", str(saved))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="^resume_from_checkpoint: .* holds no checkpoint-N"):
        find_checkpoint(str(tmp_path / "empty"), str(tmp_path / "empty"))
    (tmp_path / "cut" / TEMPORARY / "checkpoint-1").mkdir(parents=True)  # killed while it wrote its first one
    for value, name in [("last", "empty"), (True, "nothing"), ("true", "cut")]:  # nothing to go on from yet
        assert find_checkpoint(value, str(tmp_path / name), thorough=True) is None
    newest = str(saved / "checkpoint-5")
    (saved / "trainer_state.json").write_text("{}")  # as a finished run leaves it
    for value, folder in [(True, saved), ("true", saved), (str(saved), ""), (newest, "")]:
        assert find_checkpoint(value, str(folder)) == newest
    check_output_dir(str(tmp_path / "new"), None)
    check_output_dir(str(saved), "last")
    for no in (None, "false"):
        with pytest.raises(ValueError, match="^output_dir: .* holds checkpoints of another run; continue it"):
            check_output_dir(str(saved), no)
    (Path(newest) / MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"checkpoint-5 cannot be used: has no checkpoint\.json: .* Trainer"):
        find_checkpoint(newest, "")


def test_a_run_that_went_back_is_gone_on_from(saved, caplog, monkeypatch):
    """Not what it left behind, also by another clock; and it is not the first to be deleted."""
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(time=lambda: 1e9))  # long before the others were saved
    back = train(saved, resume=str(saved / "checkpoint-2"), steps=3, learning_rate=3e-3)
    assert (
        "going on from checkpoint-2, after which checkpoint-5, checkpoint-4, checkpoint-3 had been saved"
        in caplog.text
    )
    assert [path.name for path in newest_first(saved)] == [f"checkpoint-{n}" for n in (3, 5, 4, 2, 1)]
    assert how_to_resume(str(saved)).endswith(f"goes on from checkpoint-3 in {saved}")
    caplog.clear()
    resumed = train(saved, resume="last", steps=4, learning_rate=3e-3, save_total_limit=3)
    assert losses(resumed)[:3] == losses(back)
    assert "had been saved" not in caplog.text
    assert names(saved) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    damage(saved / "checkpoint-3" / MANIFEST, "deleted")  # has the place of its step
    assert [path.name for path in newest_first(saved)] == ["checkpoint-4", "checkpoint-3", "checkpoint-2"]


def test_weights_alone_are_nothing_to_go_on_from(tmp_path):
    train(tmp_path, steps=2, save_only_model=True)
    assert verify(tmp_path / "checkpoint-2") == []
    assert not (tmp_path / "checkpoint-2" / "optimizer.pt").exists()
    for value in ("last", str(tmp_path / "checkpoint-2")):
        with pytest.raises(ValueError, match=r"it holds the model alone \(--save_only_model\)"):
            train(tmp_path, resume=value)


def test_the_log_goes_on_from_the_checkpoint(whole, tmp_path):
    """Lines of later steps, and one that was cut by a kill, are gone; the others are those of an undisturbed run."""

    def lines(folder):
        found = [json.loads(line) for line in (Path(folder) / METRICS).read_text().splitlines()]
        return [{k: v for k, v in line.items() if not k.endswith(("runtime", "_second", *PACE))} for line in found]

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, callbacks=[Crash(4)], save_steps=2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    before = (tmp_path / METRICS).read_text()
    (tmp_path / METRICS).write_text(f'{before}{{"loss": 1.2')
    train(tmp_path, resume="last", save_steps=2)
    assert lines(tmp_path)[:5] == lines(whole.args.output_dir)[:5]
    assert (tmp_path / METRICS).read_text().startswith("\n".join(before.splitlines()[:2]))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 5]  # the last one sums up


# Of another model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_ratio": 0.75, "image_size": 64}, "image_size 32 and mask_ratio 0.6, this run has 64 and 0.75;"),
        ({"model_args": {"drop_path_rate": 0.3}}, r"model_args \{'drop_path_rate': 0.2\}, this run has \{'drop_path"),
        ({"mask_site": -2}, "mask_site -3, this run has -2;"),
        ({"mask_gamma_init": None}, "mask_gamma_init 1e-06, this run has None;"),
        ({"frequency_loss_weight": 0.1}, "frequency_loss_weight 0.5, this run has 0.1;"),
        ({"decoder": "multiscale"}, "decoder linear, this run has multiscale;"),
    ],
)
def test_another_model_is_refused(saved, monkeypatch, change, message):
    monkeypatch.setattr(A2MIMTrainer, "_load_from_checkpoint", lambda *args: pytest.fail("weights were loaded"))
    trainer = make_trainer(saved, shown=0)
    trainer.model = A2MIMForPreTraining(A2MIMConfig(**{**CONFIG, **change}))
    for value in ("last", str(saved / "checkpoint-2")):
        with pytest.raises(ValueError, match=f"^resume_from_checkpoint: checkpoint-. was made with {message}"):
            trainer.train(resume_from_checkpoint=value)
    trainer.model = A2MIMForImageClassification(A2MIMConfig(**CONFIG))
    with pytest.raises(ValueError, match="model A2MIMForPreTraining, this run has A2MIMForImageClassification;"):
        trainer.train(resume_from_checkpoint="last")


@pytest.mark.parametrize("nested", [False, True])
def test_fields_that_a_checkpoint_has_not_yet(monkeypatch, nested):
    """It was made with what is their default now; the configuration of a backbone, too."""

    def model(decoder):
        config = A2MIMConfig(**CONFIG, decoder=decoder).to_dict()
        config = {"backbone_config": config} if nested else config
        return SimpleNamespace(config=SimpleNamespace(to_dict=lambda: config))

    settings = json.loads(json.dumps(checkpoints.settings(model("linear"))))
    del (settings["backbone_config"] if nested else settings)["decoder"]
    monkeypatch.setattr(checkpoints, "read_manifest", lambda folder: {"settings": settings})
    check_settings("checkpoint-1", model("linear"))
    with pytest.raises(ValueError, match=r"made with (backbone_config|decoder linear, this run has multiscale;)"):
        check_settings("checkpoint-1", model("multiscale"))


@pytest.mark.ci
def test_a_multiscale_decoder_goes_on(tmp_path, monkeypatch):
    """To the same bits, the running statistics of its BatchNorm among them, and from an export as well."""
    monkeypatch.setitem(CONFIG, "decoder", "multiscale")
    expected = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", callbacks=[Crash(4)])
    assert_same(train(tmp_path / "run", resume="last"), expected)
    saved = load_file(tmp_path / "run" / f"checkpoint-{STEPS}" / "model.safetensors")
    statistics = {name: value for name, value in saved.items() if re.match(r"decoder\.fuse.*running", name)}
    assert len(statistics) == 8  # mean and variance for each of four maps
    for name, value in statistics.items():
        assert torch.equal(value, expected.model.state_dict()[name])
        assert not torch.equal(value, torch.full_like(value, float(name.endswith("var"))))
    again = load_pretraining_model(str(export_model(expected.model, tmp_path / "export")))
    assert again.config.decoder == "multiscale"
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in weights(expected).items())


def test_a_model_that_was_loaded_goes_on(whole, tmp_path):
    """Its configuration has been through a file."""
    model = load_pretraining_model(str(export_model(whole.model, tmp_path / "export")))
    for steps, value in [(2, None), (3, "last")]:
        trainer = make_trainer(tmp_path / "run", max_steps=steps, shown=0)
        trainer.model = trainer.model_wrapped = model
        trainer.train(resume_from_checkpoint=value)
    assert trainer.state.global_step == 3


# What Trainer does with checkpoints


def test_limit_with_broken_checkpoints_and_leftovers(whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, callbacks=[Crash(4)], save_total_limit=2)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    damage(tmp_path / "checkpoint-3" / "model.safetensors", "truncated")
    (tmp_path / TEMPORARY / "checkpoint-9").mkdir(parents=True)
    (tmp_path / TEMPORARY / "checkpoint-1.old").mkdir()
    (tmp_path / "checkpoint-7").mkdir()  # half deleted: the newest by number and by time of change
    # Step 3 replaces the broken one; then 7, which is no use to anybody, goes before 2.
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, callbacks=[Crash(4)], save_total_limit=2, resume="last")
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    assert_same(train(tmp_path, save_total_limit=2, resume="last"), whole)
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-5"]
    # Going back to an earlier one: what is written then is newer than what has a higher number.
    train(tmp_path, save_total_limit=1, resume=str(tmp_path / "checkpoint-4"), steps=5)
    assert names(tmp_path) == ["checkpoint-5"]


@pytest.mark.parametrize(("limit", "kept"), [(None, [1, 2, 3, 4, 5]), (2, [2, 5]), (1, [2])])
def test_the_best_model(tmp_path, monkeypatch, limit, kept):
    values = iter([3.0, 1.0, 2.0, 1.5, 2.0])

    def evaluate(self, **kwargs):
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics={})
        return {"eval_loss": next(values)}

    monkeypatch.setattr(A2MIMTrainer, "evaluate", evaluate)
    trainer = make_trainer(tmp_path, max_steps=STEPS, shown=0, save_total_limit=limit)
    trainer.args.eval_strategy, trainer.args.eval_steps = "steps", 1
    trainer.args.load_best_model_at_end, trainer.args.metric_for_best_model = True, "loss"
    trainer.args.greater_is_better = False
    trainer.train()
    assert names(tmp_path) == [f"checkpoint-{number}" for number in kept]
    best = tmp_path / "checkpoint-2"
    for state in (trainer.state, TrainerState.load_from_json(best / "trainer_state.json")):
        assert state.best_model_checkpoint == str(best)
    expected = A2MIMForPreTraining.from_pretrained(best).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in weights(trainer).items())


# Two processes


def run_two(rank: int, folder: str):
    torch.set_num_threads(1)
    output_dir = Path(folder) / "run"
    options = {"save_steps": 2, "ddp_backend": "gloo", "steps": 4}
    whole = train(output_dir, **options)
    distributed.barrier()
    result = {"files": sorted(read_manifest(output_dir / "checkpoint-4")["files"])}
    if rank == 0:
        damage(output_dir / "checkpoint-4" / "rng_state_1.pth", "flipped")
    distributed.barrier()
    resumed = train(output_dir, resume="last", **options)
    expected = weights(whole)
    result["same"] = all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())
    result["problems"] = verify(output_dir / "checkpoint-4")  # which was written anew
    try:
        train(output_dir, resume=str(output_dir / "nothing"), **options)
    except ValueError as error:
        result["error"] = str(error)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(result))
    distributed.destroy_process_group()


# Below 5.23, Trainer loads no optimiser on several processes without a GPU (device cpu:0).
@pytest.mark.ci
@pytest.mark.skipif(Version(transformers.__version__) < Version("5.23"), reason="Trainer cannot resume so yet")
def test_two_processes_save_one_checkpoint_and_resume_from_it(tmp_path):
    in_two_processes(run_two, str(tmp_path))
    for rank in range(2):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        own = ["rng_state_0.pth", "rng_state_1.pth"]
        assert result["files"] == sorted([name for name in FILES if name != "rng_state.pth"] + own)
        assert (result["same"], result["problems"]) == (True, [])
        assert result["error"].startswith("resume_from_checkpoint: there is no folder")


# Secrets


def pretrain_logged_in(home: Path, cache: Path, token: str, argv: list[str]):
    """As where `hf auth login` has stored a token in `home`, and HF_TOKEN is another."""
    os.environ["HF_TOKEN"] = token
    constants.HF_HOME, constants.HF_TOKEN_PATH = str(home), str(home / "token")
    datasets.config.HF_DATASETS_CACHE = cache
    assert get_token() == token
    run_pretraining.main(argv)


@pytest.mark.ci
def test_tokens_are_written_nowhere(tmp_path):
    """Neither the one of the command line, nor the environment's, nor the one that `hf auth login` stores."""
    report_to = "tensorboard" if importlib.util.find_spec("tensorboard") else "none"
    tokens = [f"hf_planted{kind}Secret0123456789" for kind in ("Argument", "Environment", "Login")]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text(tokens[2])
    (tmp_path / "said").mkdir()
    command = ["--architecture", "test_convnext", "--image_size", "32"]
    command += ["--num_channels", "1", "--mask_patch_size", "8", "--mask_site", "-3", "--max_train_samples", "16"]
    command += ["--per_device_train_batch_size", "8", "--use_cpu", "--max_steps", "2", "--save_steps", "1"]
    command += ["--logging_steps", "1", "--hub_token", tokens[0], "--log_level", "debug", "--report_to", report_to]
    command += ["--output_dir", str(tmp_path / "out")]
    given = tmp_path / "home", tmp_path / "cache", tokens[1], command
    code = in_a_new_process(tmp_path / "said", pretrain_logged_in, *given)
    assert code == 0, (tmp_path / "said" / "stderr").read_text()[-2000:]
    assert b"a2mim: arguments" in (tmp_path / "said" / "stderr").read_bytes()
    assert (tmp_path / "out" / "checkpoint-2" / MANIFEST).exists()
    assert any(tmp_path.rglob("events.out.*")) == (report_to == "tensorboard")
    written = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert written.pop(str(tmp_path / "home" / "token")) == tokens[2].encode()
    assert len(written) > 17
    for name, content in written.items():
        assert not [token for token in tokens if token.encode() in content], name


# The export


def test_an_export_is_never_half_written(whole, tmp_path, monkeypatch):
    folder = export_model(whole.model, tmp_path / "export")
    (folder / "pretraining" / "model-00001-of-00002.safetensors").write_text("of an earlier export")
    (folder / ".export-of-a-killed-process").mkdir()
    other = make_trainer(tmp_path / "other", shown=0).model  # has other weights than after training
    complete = export_model(other, tmp_path / "complete")
    weights_files = [path.relative_to(complete) for path in complete.rglob("*.safetensors")]
    versions = {name: {(f / name).read_bytes() for f in (folder, complete)} for name in weights_files}
    assert [len(contents) for contents in versions.values()] == [2, 2]
    replace, left = os.replace, []

    def killed(source, target):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    killed_times = 0
    while True:  # at each file that is given its name
        left[:] = [None] * killed_times
        try:
            export_model(other, folder)
            break
        except KeyboardInterrupt:
            killed_times += 1
        assert all((folder / name).read_bytes() in contents for name, contents in versions.items())
    assert killed_times >= 5
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {str(p.relative_to(complete)): p.read_bytes() for p in complete.rglob("*") if p.is_file()}
    assert not list(folder.glob(".export-*"))
