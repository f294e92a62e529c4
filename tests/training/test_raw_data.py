"""A2MIMTrainer as a user of transformers' Trainer writes it: plain arguments, raw data of every kind."""

import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import IterableDataset, TensorDataset
from transformers import Seq2SeqTrainingArguments, TrainingArguments

import modeling_a2mim
from modeling_a2mim import (
    A2MIMConfig,
    A2MIMForImageClassification,
    A2MIMForPreTraining,
    A2MIMTrainer,
    A2MIMTrainingArguments,
    FineTuningArguments,
    FineTuningTrainer,
)
from modeling_a2mim.data.dataset import ImageSamples
from modeling_a2mim.data.transforms import FineTuneTransform, PreTrainTransform
from modeling_a2mim.training.raw_data import as_samples

from .test_trainer import CONFIG, ROOT, Crash, losses


pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["cat", "dog"]


@pytest.fixture(scope="module")
def rows():
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (36, 40), dtype=np.uint8)) for _ in range(12)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES), "note": datasets.Value("string")}
    )
    columns = {"image": images, "label": [i % 2 for i in range(12)], "note": ["x"] * 12}
    return datasets.Dataset.from_dict(columns, features=features)


def pretraining():
    torch.manual_seed(0)
    return A2MIMForPreTraining(A2MIMConfig(**CONFIG))


def classifier(names=NAMES):
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return A2MIMForImageClassification(A2MIMConfig.for_encoder(**{k: CONFIG[k] for k in ENCODER}, **labels))


ENCODER = ("architecture", "image_size", "num_channels")


def plain(folder, **kwargs):
    defaults = {"per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    return TrainingArguments(str(folder), **{**defaults, "max_steps": 2, "logging_steps": 1, **kwargs})


def test_plain_arguments_keep_their_values(tmp_path):
    args = plain(tmp_path, weight_decay=0.1, lr_scheduler_type="cosine", optim="sgd", warmup_steps=3)
    for cls in (A2MIMTrainingArguments, FineTuningArguments):
        ours = cls.from_plain(args)
        assert type(ours) is cls
        assert {k: str(v) for k, v in args.to_dict().items()}.items() <= {
            k: str(v) for k, v in ours.to_dict().items()
        }.items()
        assert (ours.learning_rate, ours.layer_decay, ours.hub_license) == (5e-5, None, None)
        assert cls.from_plain(ours) is ours
    assert A2MIMTrainingArguments.from_plain(None).output_dir == "tmp_trainer"
    with pytest.raises(ValueError, match="^args: this trainer takes FineTuningArguments, not A2MIMTrainingArguments"):
        FineTuningTrainer(classifier(), A2MIMTrainingArguments(str(tmp_path), use_cpu=True))


def test_fields_of_other_arguments_are_named(tmp_path, caplog):
    args = Seq2SeqTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", generation_max_length=7)
    A2MIMTrainingArguments.from_plain(args)
    assert "generation_num_beams" in caplog.text
    assert "of Seq2SeqTrainingArguments are not known to A2MIMTrainingArguments, and have no effect" in caplog.text


def test_pretraining_on_rows(rows, tmp_path):
    """The same as with samples made by hand; evaluated, predicted, saved and resumed as by Trainer."""
    args = plain(tmp_path / "raw", eval_strategy="steps", eval_steps=1, save_steps=1)
    trainer = A2MIMTrainer(pretraining(), args, train_dataset=rows, eval_dataset=rows.select(range(6)))
    trainer.train()
    assert {"eval_loss", "eval_masked_psnr"} <= trainer.state.log_history[1].keys()
    samples = ImageSamples(rows, PreTrainTransform(A2MIMConfig(**CONFIG)), "image", seed=42)
    whole = ImageSamples(
        rows.select(range(6)), PreTrainTransform(A2MIMConfig(**CONFIG), train=False), "image", seed=42
    )
    args = plain(tmp_path / "hand", eval_strategy="steps", eval_steps=1, save_strategy="no")
    by_hand = A2MIMTrainer(model=pretraining(), args=args, train_dataset=samples, eval_dataset=whole)
    by_hand.train()
    assert losses(trainer) == losses(by_hand)
    evaluation = trainer.evaluate()
    assert trainer.evaluate(rows.select(range(6)))["eval_loss"] == evaluation["eval_loss"]
    assert trainer.predict(rows).predictions.shape[0] == 12
    trainer.save_model()
    assert {"model.safetensors", "README.md", "pretraining"} <= {p.name for p in (tmp_path / "raw").iterdir()}
    args = plain(tmp_path / "raw", eval_strategy="no", save_strategy="no")
    again = A2MIMTrainer(pretraining(), args, train_dataset=rows, eval_dataset={"one": rows, "two": rows})
    again.train(resume_from_checkpoint=str(tmp_path / "raw" / "checkpoint-1"))
    assert again.state.global_step == 2
    assert {"eval_one_loss", "eval_two_loss"} <= again.evaluate().keys()


def test_classifying_rows(rows, tmp_path):
    args = plain(tmp_path, eval_strategy="epoch", num_train_epochs=1, max_steps=-1)
    trainer = A2MIMTrainer(classifier(), args, train_dataset=rows, eval_dataset=rows)
    trainer.compute_metrics = lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())}
    trainer.train()
    assert isinstance(trainer.train_dataset.transform, FineTuneTransform)
    found = trainer.predict(rows)
    assert found.label_ids.tolist() == rows["label"][:]
    assert found.metrics["test_accuracy"] == trainer.evaluate()["eval_accuracy"]
    unlabelled = trainer.predict(rows.remove_columns("label"))
    assert np.array_equal(unlabelled.predictions, found.predictions)
    assert unlabelled.label_ids is None
    tuned = FineTuningTrainer(classifier(), plain(tmp_path / "tuned", max_steps=1), train_dataset=rows)
    tuned.train()
    tuned.save_model()
    assert load_file(tmp_path / "tuned" / "model.safetensors")


@pytest.mark.few(1)
@pytest.mark.parametrize("workers", [0, 2])
def test_streams_of_rows(rows, tmp_path, workers):
    """With three epochs of a stream whose length is not known, killed and resumed to the same weights."""

    def make(name, **kwargs):
        stream = rows.to_iterable_dataset(num_shards=2)
        args = plain(tmp_path / name, max_steps=7, save_steps=5, dataloader_num_workers=workers)
        return A2MIMTrainer(pretraining(), args, train_dataset=stream, eval_dataset=stream, **kwargs)

    whole = make("whole")
    whole.train()
    assert whole.state.global_step == 7
    assert whole.evaluate()["eval_loss"] == whole.evaluate()["eval_loss"]
    if workers:
        return
    with pytest.raises(KeyboardInterrupt):
        make("cut", callbacks=[Crash(6)]).train()
    resumed = make("cut")
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(whole)


def test_broken_images_of_a_stream(rows, caplog):
    """Are left out, and judged when their number is known: at the end of the stream."""
    broken = [{"bytes": b"no image", "path": None}] * 3
    images = rows.cast_column("image", datasets.Image(decode=False))[:5]["image"]
    stream = datasets.Dataset.from_dict({"image": broken + images}, datasets.Features({"image": datasets.Image()}))
    samples = iter(as_samples(stream.to_iterable_dataset(), pretraining(), 0, "train_dataset"))
    assert len([next(samples) for _ in range(5)]) == 5
    with pytest.raises(ValueError, match="^max_skipped_ratio: 3 of the 8 images read so far from train_dataset are"):
        next(samples)
    assert "skipped row 0 of train_dataset" in caplog.text


class Tensors(torch.utils.data.Dataset):
    def __init__(self, keys, shape=(1, 32, 32)):
        self.keys, self.shape = keys, shape

    def __len__(self):
        return 8

    def __getitem__(self, index):
        values = {"pixel_values": torch.rand(self.shape), "labels": torch.tensor(index % 2), "image": index}
        return {key: values[key] for key in self.keys}


class Stream(IterableDataset):
    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        yield from self.samples


@pytest.mark.few(1)
@pytest.mark.parametrize("make", [pretraining, classifier])
def test_datasets_of_tensors(tmp_path, make):
    """With labels that pre-training has no use for."""
    samples = Tensors(["pixel_values", "labels"])
    for data in (samples, [samples[i] for i in range(8)], Stream([samples[i] for i in range(8)])):
        trainer = A2MIMTrainer(make(), plain(tmp_path, max_steps=1, save_strategy="no"), None, data, samples)
        trainer.train()
        assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize(
    ("make", "data", "message"),
    [
        (pretraining, Tensors(["image", "labels"]), "{}: a sample is a dict of image, labels; pass samples with"),
        (
            pretraining,
            Tensors(["pixel_values"], (3, 32, 32)),
            r"{}: pixel_values of .* \(3, 32, 32\); pass ",
        ),
        (classifier, Tensors(["pixel_values"]), "{}: a sample has no labels, but pixel_values; pass .* and labels"),
        (pretraining, TensorDataset(torch.rand(4, 1, 32, 32)), "{}: a sample is a tuple of Tensor; pass samples"),
        (pretraining, Stream([{"image": 1}]), "{}, eval_dataset: a sample is a dict of nothing that the model"),
        (
            pretraining,
            Stream([(torch.rand(1, 32, 32), 0)] * 4),
            "{}, eval_dataset: a sample is a tuple of Tensor,",
        ),
    ],
)
def test_samples_that_say_what_to_pass(tmp_path, make, data, message):
    with pytest.raises(ValueError, match=f"^{message.format('train_dataset')}"):
        A2MIMTrainer(make(), plain(tmp_path), train_dataset=data).train()


def test_rows_that_say_what_to_pass(rows, tmp_path):
    def refused(model, data, message, **kwargs):
        with pytest.raises(ValueError, match=f"^{message}"):
            A2MIMTrainer(model, plain(tmp_path, **kwargs), train_dataset=data)

    text = rows.select_columns("note")
    refused(pretraining(), text, "train_dataset: the dataset has no column of images; .* cast one, ")
    refused(classifier(), rows.remove_columns("label"), "train_dataset: the dataset has no column of class labels; ")
    refused(classifier(["a", "b", "c"]), rows, "train_dataset: column 'label' has 2 classes, the model 3; ")
    refused(classifier(NAMES[::-1]), rows, "train_dataset: the classes of column 'label', .* are not those of")
    texts = rows.remove_columns("label").rename_column("note", "label")
    refused(classifier(), texts, "train_dataset: column 'label' holds Value.*class_encode_column")
    numbers = rows.cast_column("label", datasets.Value("int64")).map(lambda row: {"label": 7 * row["label"]})
    refused(classifier(), numbers, "train_dataset: column 'label' holds 7, the model's classes are 0 to 1")
    refused(
        pretraining(),
        rows.to_iterable_dataset(),
        ".*max_steps has to be specified",
        max_steps=-1,
    )
    with pytest.raises(ValueError, match="^eval_dataset: the dataset has no column of images"):
        A2MIMTrainer(pretraining(), plain(tmp_path), train_dataset=rows, eval_dataset={"a": rows, "b": text})


def test_the_documentation(tmp_path, monkeypatch):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python_api.md").read_text(), re.DOTALL)
    block = next(text for text in code if "A2MIMTrainer(" in text)
    monkeypatch.chdir(tmp_path)
    for i in range(8):
        folder = Path("images", NAMES[i % 2])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), 20 * i, dtype=np.uint8)).save(folder / f"{i}.png")
    small = {"convnext_tiny": "test_convnext", "num_train_epochs=100": "max_steps=1, use_cpu=True", "192": "64"}
    for text, other in small.items():
        assert text in block
        block = block.replace(text, other)
    exec(block, {})
    assert load_file("a2mim-convnext/model.safetensors")


def test_names_that_are_not_there():
    assert {"A2MIMTrainer", "FineTuningArguments"} <= set(dir(modeling_a2mim))
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        modeling_a2mim.Trainer  # noqa: B018
