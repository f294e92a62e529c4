"""Streams under the trainer: interrupted anywhere, on two processes, with broken images; and in the scripts."""

import functools
import json
import shutil
from pathlib import Path

import datasets
import pytest
import torch

import run_pretraining
from modeling_a2mim import A2MIMConfig
from modeling_a2mim.data.dataset import ImageSamples
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.data.transforms import PreTrainTransform
from modeling_a2mim.tasks import pretraining
from modeling_a2mim.training.trainer import A2MIMTrainer

from ..processes import in_two_processes
from ..training.test_trainer import CONFIG, Crash, losses, make_trainer, weights


ROOT = Path(__file__).resolve().parents[2]
COUNT = 22  # three batches of 8 are an epoch, the last of 6


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """22 images in two shards and five row groups."""
    folder = tmp_path_factory.mktemp("parquet")
    rows = load_images().select(range(COUNT))
    rows.select(range(10)).to_parquet(folder / "train-0.parquet", batch_size=4)
    rows.select(range(10, COUNT)).to_parquet(folder / "train-1.parquet", batch_size=6)
    return folder


def stream(folder, **kwargs):
    return ImageSamples(
        load_images(folder, streaming=True),
        PreTrainTransform(A2MIMConfig(**CONFIG)),
        "image",
        shuffle_size=8,
        **kwargs,
    )


@pytest.fixture(scope="module")
def uninterrupted(parquet, tmp_path_factory):
    """Runs of so many epochs, made once."""

    @functools.cache
    def run(epochs):
        folder = tmp_path_factory.mktemp("whole")
        trainer = make_trainer(folder, dataset=stream(parquet), num_train_epochs=epochs, save_steps=100)
        trainer.train()
        return trainer

    return run


LONG = pytest.param(11, 29, 4, marks=pytest.mark.slow)


# Saved at 2 (inside the first epoch), 6 (the end of the second), 28 (in the tenth).
@pytest.mark.few(1)
@pytest.mark.parametrize(("epochs", "stop", "workers"), [(3, 3, 0), (3, 7, 1), LONG])
def test_interrupted_streams_end_with_the_same_weights(uninterrupted, parquet, tmp_path, epochs, stop, workers):
    def make(**kwargs):
        fixed = {"dataset": stream(parquet), "num_train_epochs": epochs, "save_steps": 2 if epochs == 3 else 28}
        return make_trainer(tmp_path, dataloader_num_workers=workers, **fixed, **kwargs)

    with pytest.raises(KeyboardInterrupt):
        make(callbacks=[Crash(stop)]).train()
    resumed = make(ignore_data_skip=stop == 3)  # which is for data that has to be read again to go on
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint="last")
    whole = uninterrupted(epochs)
    expected = weights(whole)
    assert resumed.state.global_step == 3 * epochs
    assert resumed.state.epoch == epochs
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())
    assert losses(resumed) == losses(whole)


@pytest.mark.few(1)
@pytest.mark.parametrize("limit", [{"num_train_epochs": 3}, {"max_steps": 9}])
def test_going_on_with_another_batch_size(parquet, tmp_path, limit, caplog):
    """Every image still comes once in an epoch; epochs end where they should, or the number of steps is kept."""
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, dataset=stream(parquet), callbacks=[Crash(5)], **limit).train()
    resumed = make_trainer(tmp_path, dataset=stream(parquet), per_device_train_batch_size=16, **limit)
    seen, trained = [], None

    def spy(report):
        trained(report)
        seen.append((resumed.training_data._position, report["seen"]))

    begin = resumed.get_train_dataloader

    def get_train_dataloader():
        nonlocal trained
        loader = begin()
        trained, resumed.training_data.trained = resumed.training_data.trained, spy
        return loader

    resumed.get_train_dataloader = get_train_dataloader
    resumed.train(resume_from_checkpoint="last")  # from step 4: one batch of 8 of the second epoch
    epochs = 3 if "num_train_epochs" in limit else 4
    sizes = [sum(counts.values()) for _, counts in seen]
    assert sizes == ([14] + [11, 11] * 3)[: 3 if epochs == 3 else 5]
    assert seen[0][0] == (1, COUNT)
    assert resumed.state.global_step == (7 if epochs == 3 else 9)
    assert "made with 8 images in a step, this run has 16" in caplog.text


@pytest.mark.ci
@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted_augmented_streams_end_with_the_same_weights(parquet, tmp_path, workers):
    common = ["--train_dir", parquet, *AUGMENTATION, "--per_device_train_batch_size", 8, "--num_train_epochs", 2]
    pretrain(tmp_path / "whole", *common)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "A2MIMTrainer", functools.partial(A2MIMTrainer, callbacks=[Crash(4)]))
        with pytest.raises(KeyboardInterrupt):
            pretrain(tmp_path / "cut", *common, "--save_steps", 2)
    going_on = ["--resume_from_checkpoint", "last", "--dataloader_num_workers", workers]
    pretrain(tmp_path / "cut", *common, "--save_steps", 2, *going_on)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert one == two
    assert logged(tmp_path / "whole") == logged(tmp_path / "cut")


def test_a_checkpoint_on_other_data_is_refused(parquet, tmp_path):
    samples = stream(parquet)
    make_trainer(tmp_path / "rows", dataset=[samples[i] for i in range(8)], max_steps=1).train()
    with pytest.raises(ValueError, match="^resume_from_checkpoint: .*checkpoint-1 does not say how far it was in"):
        make_trainer(tmp_path / "rows", dataset=samples, max_steps=2).train(resume_from_checkpoint="last")
    make_trainer(tmp_path / "more", dataset=samples, max_steps=1).train()
    samples.source = samples.source.take(20)
    with pytest.raises(ValueError, match="^resume_from_checkpoint: the training data has changed"):
        make_trainer(tmp_path / "more", dataset=samples, max_steps=2).train(resume_from_checkpoint="last")


def with_broken(parquet, folder, every):
    """The same shards with some images cut in half."""
    folder.mkdir()
    for file in sorted(parquet.iterdir()):
        rows = datasets.Dataset.from_parquet(str(file)).cast_column("image", datasets.Image(decode=False))
        rows = rows.map(
            lambda row, i: {"image": {"bytes": row["image"]["bytes"][: 40 if i % every == 2 else None], "path": None}},
            with_indices=True,
        )
        rows.cast_column("image", datasets.Image()).to_parquet(folder / file.name, batch_size=4)
    return folder


def test_shards_that_were_replaced(parquet, tmp_path, caplog):
    """By others of the same names and numbers of rows: of another size they are refused, of another time named."""
    folder = shutil.copytree(parquet, tmp_path / "data")
    make_trainer(tmp_path / "run", dataset=stream(folder), max_steps=1).train()
    name = "train-0.parquet"  # whose row groups `with_broken` makes as large
    shutil.copy(with_broken(parquet, tmp_path / "broken", 5) / name, folder / name)
    with pytest.raises(ValueError, match="^resume_from_checkpoint: the training data has changed .* of other sizes"):
        make_trainer(tmp_path / "run", dataset=stream(folder), max_steps=2).train(resume_from_checkpoint="last")
    shutil.copyfile(parquet / name, folder / name)
    make_trainer(tmp_path / "run", dataset=stream(folder), max_steps=2).train(resume_from_checkpoint="last")
    assert f"1 files of the training data, such as {name}, were changed after checkpoint-1 was written" in caplog.text


@pytest.mark.ci
def test_broken_images_are_skipped_counted_and_resumed(parquet, tmp_path):
    folder = with_broken(parquet, tmp_path / "broken", every=5)  # rows 2, 7 and 12, 17 of the two shards: 5 in all
    whole = make_trainer(tmp_path / "whole", dataset=stream(folder, max_skipped_ratio=0.5))
    whole.train()
    counts = [log["skipped_images"] for log in whole.state.log_history if "loss" in log]
    assert counts == sorted(counts)
    assert counts[2] == 4
    assert counts[-1] == 12
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "cut", dataset=stream(folder, max_skipped_ratio=0.5), callbacks=[Crash(5)]).train()
    resumed = make_trainer(tmp_path / "cut", dataset=stream(folder, max_skipped_ratio=0.5))
    resumed.train(resume_from_checkpoint="last")
    assert [log["skipped_images"] for log in resumed.state.log_history if "loss" in log] == counts
    assert losses(resumed) == losses(whole)
    with pytest.raises(ValueError, match=r"^max_skipped_ratio: 2 of the \d+ images read so far from .*, which has"):
        make_trainer(tmp_path / "stopped", dataset=stream(folder)).train()


ARGUMENTS = ["--architecture", "test_convnext", "--image_size", "32", "--num_channels", "1", "--mask_patch_size", "8"]
ARGUMENTS += ["--mask_site", "-3", "--use_cpu", "--disable_tqdm", "True", "--streaming", "--logging_steps", "1"]
ARGUMENTS += ["--learning_rate", "1e-3"]


AUGMENTATION = ["--hflip", "0.3", "--vflip", "0.5", "--rotate90", "--color_jitter", "0.4"]


def pretrain(folder, *args):
    return run_pretraining.main([*ARGUMENTS, "--output_dir", str(folder), *map(str, args)])


@pytest.mark.ci
def test_scripts_stream_every_kind_of_source(parquet, tmp_path):
    rows = datasets.Dataset.from_parquet(str(parquet / "train-0.parquet"))
    rows.save_to_disk(tmp_path / "saved")
    for i, image in enumerate(rows["image"]):
        (tmp_path / "images").mkdir(exist_ok=True)
        image.save(tmp_path / "images" / f"{i}.png")
    every = [str(tmp_path / "images"), str(parquet), str(tmp_path / "saved")]
    common = ["--num_train_epochs", 2, "--per_device_train_batch_size", 4, "--save_steps", 100]
    for source in every:
        pretrain(tmp_path / f"of-{Path(source).name}", "--train_dir", source, *common)
    pretrain(tmp_path / "mixed", "--train_dir", *every, "--dataset_weights", 2, 1, 1, *common)
    state = json.loads((tmp_path / "mixed" / "trainer_state.json").read_text())
    assert state["global_step"] == 2 * 11  # 10 + 22 + 10 images
    for wrong, message in (
        (["--dataset_weights", 1], "^dataset_weights: there are 2 sources, but 1 weights"),
        (["--max_train_samples", 3], "^max_train_samples: cannot be used with several sources"),
        (["--validation_split", "test"], "^validation_split: there are several sources"),
    ):
        with pytest.raises(ValueError, match=message):
            pretrain(tmp_path / "no", "--dataset_name", *every[:2], *wrong)


# Two processes (whose exact resume is in test_checkpoints.py).


def logged(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [log["loss"] for log in history if "loss" in log]


def run_distributed(rank: int, arguments: list):
    torch.set_num_threads(1)
    pretrain(*arguments)
    torch.distributed.destroy_process_group()


@pytest.mark.ci
def test_two_processes_are_like_one(parquet, tmp_path):
    """With the same images in a step, one process has the losses of two, and can go on from their checkpoint. That is,
    where the loss is a mean over images: without averaging the batch before the Fourier transform, which DDP would do
    in each process."""
    common = ["--train_dir", parquet, "--num_train_epochs", 3, "--save_steps", 2]
    common += ["--frequency_batch_average", "False", "--model_args", '{"drop_path_rate": 0.0}']
    two = [tmp_path / "two", *common, "--per_device_train_batch_size", 4, "--ddp_backend", "gloo"]
    in_two_processes(run_distributed, two)
    two = logged(tmp_path / "two")
    common += ["--per_device_train_batch_size", 8]
    pretrain(tmp_path / "one", *common)
    pretrain(tmp_path / "two", *common, "--resume_from_checkpoint", tmp_path / "two" / "checkpoint-4")
    for losses_of_one in (logged(tmp_path / "one"), logged(tmp_path / "two")):
        # Sums in another order; later steps add what the optimiser makes of that.
        assert losses_of_one == pytest.approx(two, rel=1e-4)
