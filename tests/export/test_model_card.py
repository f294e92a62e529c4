"""Model cards: what a reader and the Hub find in them, and nothing that nobody knows."""

import re
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from modeling_a2mim import A2MIMForImageClassification, A2MIMForPreTraining
from modeling_a2mim.data.decoding import load_tensor
from modeling_a2mim.data.pixel_spec import PixelSpec
from modeling_a2mim.export.filenames import PLACEHOLDER
from modeling_a2mim.export.model_card import model_card, stored_code
from modeling_a2mim.export.record import earlier_runs
from modeling_a2mim.utils.value_range import ValueRange

from ..families import family_config


CARDS = Path(__file__).resolve().parents[2] / "model_cards"


RECORD = {
    "task": "fine-tuning",
    "data": "org/birds",
    "datasets": ["org/birds"],
    "base_model": "org/encoder",
    "license": "mit",
    "tags": ["birds"],
    "evaluated_on": "org/birds",
    "evaluation_note": "split validation",
    "images": 1234,
    "steps": 5678,
    "epochs": 9.5,
    "total_batch_size": 256,
    "processes": 2,
    "optimizer": "adamw_torch",
    "learning_rate": 1e-3,
    "adam_betas": [0.9, 0.999],
    "weight_decay": 0.05,
    "max_grad_norm": 5.0,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 100,
    "crop_scale": None,
    "precision": "bfloat16",
    "seed": 42,
    "data_seed": 43,
    "hardware": "2 x NVIDIA H100",
    "versions": {"torch": "2.15.0"},
    "evaluation": {"step": 5678, "images": 500, "loss": 0.5, "accuracy": 0.8125},
    "log": [{"step": 1, "loss": 2.0}, {"step": 5678, "loss": 0.25}],
}
RANGES = [
    ["0", "4095"],
    ["100", "2000", "unclipped"],
    ["0", "1000", "0", "2000", "-5", "5"],
    ["percentile", "1", "99"],
    ["percentile", "0", "50", "1", "99", "10", "90"],
]
ALL = ("reconstruction.png", "loss_curve.png", "example.png", "pretraining/config.json")
LABELS = {"id2label": {0: "a | b", 1: "{{ 7 * 7 }}", 2: "line\nbreak"}}
# A card as a whole: metadata, title, pictures, code, tables, sections in this order.
PATTERN = r"""---
(?P<metadata>(?:[^\n]+\n)+)---

# (?P<title>[^\n]+)

(?P<summary>[^\n]+)

(?:!\[[^]]+\]\(reconstruction\.png\)

\*[^\n]+\*

)?## How to load it

(?P<loading>.+```)

## How it was made

\| \| \|
\|---\|---\|
(?P<facts>(?:\| [^|\n]+ \| (?:[^|\n]|\\\|)+ \|\n)+)
(?:!\[Loss by step\]\(loss_curve\.png\)

)?(?P<monitored>Measured of the frozen encoder on .+\|

)?## Evaluation

(?P<evaluation>.+)

## Intended use and limits

(?P<limits>(?:- [^\n]+\n)+)(?:
## Citation

```bibtex
(?P<citation>@inproceedings\{.+)
```
)?"""


@pytest.fixture(scope="module")
def encoder():
    return A2MIMForPreTraining(family_config("resnet"))


@pytest.fixture(scope="module")
def classifier():
    labels = {"id2label": LABELS["id2label"], "label2id": {name: i for i, name in LABELS["id2label"].items()}}
    return A2MIMForImageClassification(family_config("vit", **labels))


def parts(card):
    found = re.fullmatch(PATTERN, str(card), re.DOTALL)
    assert found, str(card)
    assert "\n\n\n" not in str(card)
    assert not re.search(r"\{%|%\}|\{\{(?! 7)|None|nan", str(card))
    facts = dict(line.strip("| ").split(" | ", 1) for line in found["facts"].strip().splitlines())
    return {**found.groupdict(), "facts": facts}


def test_of_an_encoder_of_which_nothing_is_known(encoder):
    card = model_card(encoder)
    found = parts(card)
    assert found["evaluation"].startswith("Not evaluated.")
    assert found["facts"]["training"] == "not recorded"
    assert found["facts"]["licence of the weights"] == "not stated"
    assert PLACEHOLDER in found["loading"]
    assert card.data.to_dict() == {
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "tags": [
            "image-feature-extraction",
            "timm",
            "transformers",
            "a2mim",
            "masked-image-modeling",
            "arxiv:2205.13943",
        ],
    }


SIMMIM = {"mask_fill": "none", "mask_token_mode": "replace", "mask_gamma_init": None, "spatial_loss": "l1"}
SIMMIM |= {"frequency_loss_weight": 0.0}
LINKS = {"A2MIM": "[A2MIM](https://arxiv.org/abs/2205.13943)", "SimMIM": "[SimMIM](https://arxiv.org/abs/2111.09886)"}


@pytest.mark.parametrize(
    ("settings", "method", "cited"),
    [
        ({}, "A2MIM", ["li2023a2mim"]),
        ({"mask_fill": "zero", "frequency_loss_weight": 0.0, "spatial_loss": "l1"}, "A2MIM", ["li2023a2mim"]),
        (SIMMIM, "SimMIM", ["xie2022simmim"]),
        ({**SIMMIM, "frequency_loss_weight": 0.1}, "a mixture of A2MIM and SimMIM", ["li2023a2mim", "xie2022simmim"]),
        ({"mask_fill": "none"}, "a mixture of A2MIM and SimMIM", ["li2023a2mim", "xie2022simmim"]),
    ],
)
def test_the_method_is_that_of_the_settings(settings, method, cited):
    card = model_card(A2MIMForPreTraining(family_config("resnet", **settings)), RECORD)
    found = parts(card)
    assert found["title"] == f"test_resnet, pre-trained with {method}"
    linked = method
    for name, link in LINKS.items():
        linked = linked.replace(name, link)
    assert f"pre-trained by masked image modelling ({linked}): an encoder" in found["summary"]
    assert re.findall(r"@inproceedings\{(\w+),", found["citation"]) == cited
    assert ("arxiv:2205.13943" in card.data.tags, "arxiv:2111.09886" in card.data.tags) == tuple(
        name in method for name in LINKS
    )


@pytest.mark.parametrize(
    ("record", "made", "method"),
    [
        ({"task": "training from scratch", "base_model": None}, ", trained from scratch, with", None),
        ({"base_model": "timm/resnet18.a1_in1k"}, ", fine-tuned from `timm/resnet18.a1_in1k`, with", None),
        ({"base_model": None}, ", fine-tuned from an encoder, with", None),
        ({"task": "linear probing"}, ", a linear probe of `org/encoder`, with", None),
        (
            {"earlier": [{"task": "masked image modelling", "method": "SimMIM"}, {"task": "fine-tuning"}]},
            f", fine-tuned from `org/encoder` pre-trained by masked image modelling ({LINKS['SimMIM']}), with",
            "SimMIM",
        ),
        (
            {"earlier": [{"task": "masked image modelling"}], "base_model": None},  # of an earlier version
            f"an encoder pre-trained by masked image modelling ({LINKS['A2MIM']} or {LINKS['SimMIM']}), with",
            "A2MIM or SimMIM",
        ),
    ],
)
def test_what_a_classifier_was_made_from(classifier, record, made, method):
    card = model_card(classifier, {**RECORD, **record})
    found = parts(card)
    assert made in found["summary"]
    names = [name for name in LINKS if name in (method or "")]
    assert (found["citation"] is None) == (not names)
    tags = {"masked-image-modeling", "a2mim", "simmim", "arxiv:2205.13943", "arxiv:2111.09886"} & set(card.data.tags)
    assert bool(tags) == bool(names)
    assert {name.lower() for name in names} <= tags
    if not names:
        assert not re.search("(?i)a2mim|simmim|masked image", str(card))


def test_of_a_run(encoder):
    record = {**RECORD, "base_model": None, "evaluation": {"step": 5678, "images": 500, "loss": 0.5}}
    card = model_card(encoder, record, "org/name", ALL)
    found = parts(card)
    assert found["facts"]["steps"] == "5,678, 9.5 passes"
    assert found["facts"]["seeds"] == "42, of the data 43"
    assert found["facts"]["hardware"] == "2 x NVIDIA H100"
    assert found["facts"]["last loss"] == "0.2500 at step 5,678"
    assert found["facts"]["mask token"] == "add at `layer3.0`"
    assert found["facts"]["decoder"] == "one 1x1 convolution of the last feature map, 297,984 parameters"
    assert "| loss | 0.5000 |" in found["evaluation"]
    assert "was not evaluated here" in found["evaluation"]
    assert 'A2MIMBackbone.from_pretrained("org/name", subfolder="pretraining"' in found["loading"]
    assert 'timm.create_model("hf-hub:org/name", pretrained=True, features_only=True)' in found["loading"]
    assert "reconstruction.png" in card.text
    assert "loss_curve.png" in card.text
    assert (card.data.license, card.data.datasets, card.data.metrics) == ("mit", ["org/birds"], None)


def test_of_a_multiscale_decoder():
    model = A2MIMForPreTraining(family_config("resnet", decoder="multiscale", decoder_kernel_size=3))
    count = f"{sum(p.numel() for p in model.decoder.parameters()):,}"
    told = "the feature maps of 4, 8, 16 and 32 px a cell, predicts with a 3x3 convolution"
    assert parts(model_card(model))["facts"]["decoder"] == f"multiscale, of {told}, {count} parameters"


def test_of_a_run_that_goes_on_from_others(encoder, classifier):
    first = {**RECORD, "task": "masked image modelling", "steps": 1000, "epochs": 2.25, "recipe": "paper"}
    second = {**RECORD, "task": "masked image modelling", "earlier": earlier_runs(first)}
    own = {**RECORD, "task": "masked image modelling", "steps": 10, "epochs": 1.0, "earlier": earlier_runs(second)}
    facts = parts(model_card(encoder, own))["facts"]
    settings = "1,234 images in a pass, data: org/birds, batch 256, learning rate 0.001"
    assert facts["earlier run 1"] == (f"masked image modelling, 1,000 steps, 2.25 passes, {settings}, recipe paper")
    assert facts["earlier run 2"] == f"masked image modelling, 5,678 steps, 9.5 passes, {settings}"
    assert facts["masked image modelling, in all"] == "6,688 steps, 12.75 passes"
    assert facts["steps"] == "10, 1.0 passes"
    facts = parts(model_card(classifier, {**RECORD, "earlier": earlier_runs(first)}))["facts"]
    assert facts["earlier run"].startswith("masked image modelling, 1,000 steps")
    assert not [name for name in facts if name.endswith("in all")]
    facts = parts(model_card(encoder, {**second, "earlier": [{}, *earlier_runs(first)]}))["facts"]
    assert facts["earlier run 1"] == "not recorded"
    assert facts["masked image modelling, in all"] == "at least 6,678 steps, 11.75 passes"


def test_of_a_classifier(classifier):
    card = model_card(classifier, {**RECORD, "example": "a | b"}, "org/name", ALL, family_config("vit"))
    found = parts(card)
    assert f"`org/encoder` pre-trained by masked image modelling ({LINKS['A2MIM']})" in found["summary"]
    assert "a | b, {{ 7 * 7 }}, line" in found["summary"]  # names are not run as templates
    assert "fine-tuned from `org/encoder`" in found["summary"]
    assert "| accuracy | 0.8125 |" in found["evaluation"]
    assert "Measured on 500 images of org/birds, at step 5,678" in found["evaluation"]
    assert "AutoModelForImageClassification" in found["loading"]
    assert (card.data.base_model, card.data.metrics) == ("org/encoder", ["accuracy"])
    example = {"src": "https://huggingface.co/org/name/resolve/main/example.png", "example_title": "a | b"}
    assert card.data.widget == [example]
    assert "birds" in card.data.tags


def test_pictures_and_pipelines_only_where_there_are_any(classifier):
    grey = A2MIMForPreTraining(family_config("resnet", num_channels=1))
    found = parts(model_card(grey))
    assert "from transformers import pipeline" not in found["loading"]
    assert "takes 1 channel(s)" in found["loading"]
    assert ".png" not in str(model_card(classifier, RECORD))


def test_published_numbers_are_marked(encoder):
    row = {"method": "A2MIM", "architecture": "ResNet-50", "dataset": "ImageNet-1K", "metric": "top-1 accuracy"}
    row |= {"value": "80.4", "protocol": "fine-tuned, RSB A2"}
    found = parts(model_card(encoder, {"origin": "converted from the official release", "published": [row]}))
    assert "Not evaluated here.\n\nThese numbers are the paper's, not measured here:\n\n" in found["evaluation"]
    assert "| A2MIM | ResNet-50 | ImageNet-1K | top-1 accuracy | 80.4 | fine-tuned, RSB A2 |" in found["evaluation"]
    assert found["facts"]["training"] == "converted from the official release"


def test_the_hub_accepts_it(hub, classifier):
    """`validate` asks the Hub, here the one of the tests, which reads the YAML."""
    card = model_card(classifier, {**RECORD, "example": "é: [x"}, "org/name", ALL)
    card.validate()
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_committed_cards():
    """Those in `model_cards/` have the same shape."""
    committed = sorted(CARDS.glob("*.md"))
    assert committed
    for path in committed:
        card = ModelCard.load(path)
        found = parts(card)
        assert card.data.library_name == "timm"
        measured = "Measured on" in found["evaluation"]
        assert measured or "the paper's, not measured here" in found["evaluation"] or "Not eval" in found["evaluation"]


MONITOR = {"data": "org/birds, split test", "images": 200, "of": 4000, "classes": 7, "log": [{}, {}, {}]}
POINTS = {"first": (0, 0.2), "best": (50, 0.6875), "last": (1100, 0.65)}
MONITOR["summary"] = {"knn_accuracy": {kind: {"step": s, "value": v} for kind, (s, v) in POINTS.items()}}


def test_what_was_measured_while_the_encoder_learned(encoder):
    found = parts(model_card(encoder, {**RECORD, "monitor": MONITOR}, files=ALL))
    assert found["monitored"].splitlines() == [
        "Measured of the frozen encoder on 200 of 4,000 images (org/birds, split test; 7 classes), 3 times:",
        "",
        "| while it learned | first | best | last |",
        "|---|---|---|---|",
        "| leave-one-out k-NN accuracy, by cosine | 0.2000 (step 0) | 0.6875 (step 50) | 0.6500 (step 1,100) |",
        "",
    ]
    unlabelled = {**MONITOR, "classes": 0, "data": None}
    found = parts(model_card(encoder, {**RECORD, "monitor": unlabelled}))
    assert "on 200 of 4,000 images (not recorded which; without labels), 3 times:" in found["monitored"]
    for record in (RECORD, {**RECORD, "monitor": {**MONITOR, "summary": {}}}):  # of a run that diverged at once
        assert parts(model_card(encoder, record))["monitored"] is None


@pytest.mark.parametrize("words", RANGES, ids=" ".join)
def test_the_lines_for_stored_values_are_what_was_trained_with(words):
    values = np.random.default_rng(0).normal(900, 700, (4, 20, 20)).astype(np.float32)
    values[1, :3], values[2, 5, 5], values[0] = np.nan, np.inf, 7
    known = ValueRange.from_words(words)
    if known.of is not None:  # whose percentiles infinities are in
        values[2, 5, 5] = 0
    config = family_config("vit", channels=[4, 2, 1], value_range=known.to_config())
    found = {"values": values.copy(), "np": np}
    with np.errstate(invalid="ignore", divide="ignore"):
        exec(stored_code(config), found)
    expected = load_tensor(values, PixelSpec.from_config(config)).numpy()
    np.testing.assert_allclose(found["values"].astype(np.float32), expected, rtol=1e-6, atol=1e-7)
