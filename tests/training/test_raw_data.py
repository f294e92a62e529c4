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
from transformers import Seq2SeqTrainingArguments, TrainingArguments, default_data_collator

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


def test_rows_with_a_transform_of_the_users(rows, tmp_path):
    """Which reads columns that the model does not take, and may give others."""

    def transform(batch):
        pixels = [torch.from_numpy(np.array(image.resize((32, 32)))) for image in batch["image"]]
        return {"pixel_values": [p[None] / 127.5 - 1 for p in pixels], "labels": batch["label"], "note": batch["note"]}

    data = rows.with_transform(transform)
    args = plain(tmp_path, max_steps=1, save_strategy="no")
    trainer = A2MIMTrainer(classifier(), args, None, data, {"one": data})
    trainer.train()
    assert trainer.evaluate()["eval_one_loss"] > 0
    assert len(trainer.predict(data).predictions) == 12
    with pytest.raises(ValueError, match="^train_dataset: a sample is a dict of x; pass "):
        A2MIMTrainer(pretraining(), args, None, rows.with_transform(lambda batch: {"x": batch["label"]}))


def test_a_collator_that_asks_for_the_rows(rows, tmp_path):
    def collated(samples):
        return {"pixel_values": torch.stack([torch.full((1, 32, 32), float(len(s["note"]))) for s in samples])}

    def first_batch(data):
        args = TrainingArguments(str(tmp_path), use_cpu=True, remove_unused_columns=False)
        trainer = A2MIMTrainer(pretraining(), args, train_dataset=data, data_collator=collated)
        return next(iter(trainer.get_train_dataloader()))

    with pytest.raises(ValueError, match="^data_collator: KeyError 'note'; .* have pixel_values, bool_masked_pos; "):
        first_batch(rows)
    assert first_batch(rows.with_transform(lambda given: given))["pixel_values"].unique().tolist() == [1]


def test_a_column_of_images_of_any_name(rows):
    named = rows.rename_column("image", "pixel_values")
    for data in (named, named.to_iterable_dataset()):
        samples = as_samples(data, pretraining(), 0, "eval_dataset")
        assert next(iter(samples))["pixel_values"].shape == (1, 32, 32)


class Tensors(torch.utils.data.Dataset):
    def __init__(self, keys, shape=(1, 32, 32), change=None):
        self.keys, self.shape, self.change = keys, shape, change or (lambda pixels: pixels)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        pixels = self.change(torch.rand(self.shape))
        values = {"pixel_values": pixels, "labels": torch.tensor(index % 2), "image": index}
        return {key: values[key] for key in self.keys}


def as_bytes(pixels):
    return (255 * pixels).to(torch.uint8)


def as_image(pixels):
    return Image.fromarray(as_bytes(pixels)[0].numpy())


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
        (
            pretraining,
            Tensors(["pixel_values"], change=as_image),
            "{}: pixel_values of a sample are of type Image, the",
        ),
        (
            pretraining,
            Stream([{"pixel_values": as_image(torch.rand(1, 32, 32))}] * 4),
            "{}, eval_dataset: pixel_values of a sample are of type Image, the model .*; pass rows of datasets",
        ),
        (
            pretraining,
            Tensors(["pixel_values"], change=lambda pixels: [pixels.tolist(), [0.5]]),
            "{}: pixel_values of a sample are no numbers .*; pass samples",
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


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (classifier, as_bytes, "of torch.uint8, which are not normalised; of pixels in .0, 1., subtract image_mean"),
        (pretraining, lambda pixels: as_bytes(pixels).numpy(), "of torch.uint8, which are not"),
        (pretraining, lambda pixels: as_bytes(pixels).tolist(), "of torch.int64, which are not"),
        (classifier, lambda pixels: pixels > 0.5, "of torch.bool, which are not"),
        (pretraining, lambda pixels: 255 * pixels, r"from [\d.e-]+ to 25\d[\d.]*, which are not normalised; "),
    ],
)
def test_pixels_that_are_not_normalised(tmp_path, make, change, message):
    """Are refused wherever they are seen first: a sample, or a batch of a stream or of a collator."""
    good, bad = Tensors(["pixel_values", "labels"]), Tensors(["pixel_values", "labels"], change=change)
    args, model = plain(tmp_path, max_steps=1, save_strategy="no"), make()

    def refused(name, **kwargs):
        def run():
            trainer = A2MIMTrainer(model, args, **{"train_dataset": good, **kwargs})
            return trainer.evaluate() if name == "eval_dataset" else trainer.train()

        with pytest.raises(ValueError, match=f"^{name}: pixel_values are {message}"):
            run()

    stream = Stream([bad[i] for i in range(8)])
    refused("train_dataset", train_dataset=bad)
    refused("train_dataset", train_dataset=stream)
    refused("train_dataset", train_dataset=bad, data_collator=default_data_collator)
    refused("eval_dataset", eval_dataset={"one": good, "two": bad})
    refused("eval_dataset", eval_dataset=stream)


def test_another_size_is_told(tmp_path, caplog):
    data = Tensors(["pixel_values", "labels"], (1, 48, 64))
    args = plain(tmp_path, max_steps=2, save_strategy="no")
    A2MIMTrainer(classifier(), args, train_dataset=data).train()
    assert caplog.text.count("train_dataset: pixel_values are of 48 x 64 px; the config says 32 x 32") == 1
    assert "image_size=[48, 64] in its config" in caplog.text


def test_steps_of_the_users_may_normalise(tmp_path):
    class Own(A2MIMTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            inputs["pixel_values"] = inputs["pixel_values"].float() / 127.5 - 1
            return super().compute_loss(model, inputs, *args, **kwargs)

    data = Tensors(["pixel_values", "labels"], change=as_bytes)
    trainer = Own(classifier(), plain(tmp_path, max_steps=1, save_strategy="no"), None, data, data)
    trainer.train()
    assert trainer.state.global_step == 1


def test_mixed_bytes_of_a_stream(tmp_path):
    bad = Tensors(["pixel_values", "labels"], change=as_bytes)
    args = FineTuningArguments(
        str(tmp_path), max_steps=1, use_cpu=True, report_to="none", mixup=0.2, eval_strategy="no"
    )
    with pytest.raises(ValueError, match="^train_dataset: pixel_values are of torch.uint8"):
        FineTuningTrainer(classifier(), args, train_dataset=Stream([bad[i] for i in range(8)])).train()


def test_a_collator_may_normalise(tmp_path):
    """What it takes is its own matter: bytes, tuples, other names."""

    def collator(samples):
        images = torch.stack([image for image, _ in samples])
        return {"pixel_values": images / 127.5 - 1, "labels": torch.stack([label for _, label in samples])}

    data = TensorDataset(torch.randint(256, (8, 1, 32, 32), dtype=torch.uint8), torch.arange(8) % 2)
    args = plain(tmp_path, max_steps=1, save_strategy="no")
    trainer = A2MIMTrainer(classifier(), args, collator, data, data)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    args = plain(tmp_path, max_steps=1, save_strategy="no", remove_unused_columns=False)
    with pytest.raises(
        ValueError, match="^train_dataset: a batch is a dict of images; it needs a tensor pixel_values"
    ):
        A2MIMTrainer(classifier(), args, lambda samples: {"images": torch.ones(1)}, data).train()


def test_statistics_of_the_users_own(tmp_path, caplog):
    """Values far from those of the config are warned of once, and left alone if its range cuts nothing off."""

    def train(change, **fields):
        caplog.clear()
        model = A2MIMForPreTraining(A2MIMConfig(**CONFIG, **fields))
        data = Tensors(["pixel_values"], change=change)
        trainer = A2MIMTrainer(model, plain(tmp_path, max_steps=1, save_strategy="no"), None, data, data)
        trainer.train()
        trainer.evaluate()
        trainer.evaluate()
        return caplog.text.count("far from those normalised by image_mean")

    assert train(lambda pixels: 9 * (2 * pixels - 1)) == 0
    assert train(lambda pixels: 99 * (2 * pixels - 1)) == 2  # of training, and of evaluation
    for clip, warnings in ((True, 2), (False, 0)):
        known = {"low": [0.0], "high": [4095.0], "clip": clip}
        assert train(lambda pixels: 99 * (2 * pixels - 1), value_range=known) == warnings


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
