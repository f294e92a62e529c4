"""What a run starts from: the weights in the root of a folder or repository, whatever model that is, and what is said
of them; and models of this package from the root of an export."""

import json
import logging
import shutil

import pytest
import timm
import torch
from huggingface_hub import constants, hf_hub_download
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, UperNetConfig, UperNetForSemanticSegmentation

import run_finetune
import run_pretraining
from modeling_a2mim import (
    A2MIMBackbone,
    A2MIMConfig,
    A2MIMForImageClassification,
    A2MIMForObjectDetection,
    A2MIMForPreTraining,
    A2MIMModel,
)
from modeling_a2mim.arguments.dense import DenseModelArguments
from modeling_a2mim.arguments.model import ClassifierArguments
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.export.loading import (
    load_classifier,
    load_encoder,
    load_pretraining_model,
    pretraining_beside,
)
from modeling_a2mim.models.detection import A2MIMDetectorConfig
from modeling_a2mim.models.linear_probe import LinearProbe
from modeling_a2mim.models.start import load_into_encoder
from modeling_a2mim.pretrained import find_file, open_pretrained
from modeling_a2mim.tasks.encoder import build_backbone, build_classifier
from modeling_a2mim.tasks.start import encoder_provenance, open_start

from ..families import family_config


pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["cat", "dog", "owl"]
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
RUN = {
    "task": "fine-tuning",
    "steps": 7,
    "epochs": 1.0,
    "data": "owls",
    "earlier": [{"task": "masked image modelling"}],
}
FAST = ["--max_steps", "1", "--use_cpu", "--disable_tqdm", "True", "--save_strategy", "no", "--learning_rate", "0"]
FAST += ["--per_device_train_batch_size", "4"]


@pytest.fixture(scope="module")
def models():
    """A pre-training model, and a classifier with other weights of the encoder, as after fine-tuning."""
    torch.manual_seed(0)
    pretraining = A2MIMForPreTraining(family_config("resnet", image_size=32)).eval()
    classifier = A2MIMForImageClassification(family_config("resnet", image_size=32, **LABELS)).eval()
    return pretraining, classifier


@pytest.fixture
def classifier(models, tmp_path):
    """A fine-tuned classifier with the pre-training model, from before, beside it."""
    record = {**RUN, "log": [], "evaluation": None, "license": None}
    return export_model(models[1], tmp_path / "classifier", pretraining=models[0], record=without_facts(record))


def without_facts(record):
    """A card of it can be written."""
    known = {"images": 4, "total_batch_size": 2, "processes": 1, "optimizer": "adamw", "learning_rate": 0.1}
    known |= {"adam_betas": [0.9, 0.999], "weight_decay": 0.0, "max_grad_norm": 1.0, "lr_scheduler_type": "cosine"}
    known |= {"warmup_steps": 0, "crop_scale": None, "precision": "float32", "seed": 1, "data_seed": 1}
    return {**known, "hardware": "CPU", "versions": {}, **record}


def encoder_of(model) -> dict:
    return {name: value for name, value in model.a2mim.encoder.state_dict().items() if not name.startswith("fc.")}


def assert_same(found: dict, expected: dict):
    assert not expected.keys() - found.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


def trained(weights: dict) -> dict:
    """What a step at a rate of 0 leaves as it was."""
    return {name: value for name, value in weights.items() if "running" not in name and "num_batches" not in name}


# Commands


def test_the_root_is_fine_tuned(models, classifier, folder, tmp_path, caplog, no_pictures):
    out = tmp_path / "out"
    data = ["--train_dir", str(folder), "--output_dir", str(out)]
    with caplog.at_level(logging.INFO, "a2mim"):
        run_finetune.main(["--model_name_or_path", str(classifier), *data, *FAST])
    assert f"weights: the classifier in {classifier} (its 3-class head is left out)" in caplog.text
    assert_same(load_file(out / "model.safetensors"), trained(encoder_of(models[1])))
    assert load_file(out / "model.safetensors")["fc.weight"].shape[0] == 2
    # What serves to go on pre-training is kept as it is.
    assert (out / "pretraining/model.safetensors").read_bytes() == (
        classifier / "pretraining/model.safetensors"
    ).read_bytes()
    record = json.loads((out / "training.json").read_text())
    assert record["start"] == "a classifier of 3 classes"
    assert [run.get("task") for run in record["earlier"]] == ["masked image modelling", "fine-tuning"]
    assert "| started from | a classifier of 3 classes |" in (out / "README.md").read_text()
    assert str(tmp_path) not in (out / "training.json").read_text()


def test_frozen_features_are_those_of_the_root(models, classifier, folder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "modeling_a2mim.tasks.classification.frozen.evaluate_frozen", lambda model, *a, **k: seen.append(model) or []
    )
    monkeypatch.setattr("modeling_a2mim.tasks.classification.task.report", lambda *args: {})
    data = ["--train_dir", str(folder), "--validation_dir", str(folder), "--output_dir", str(tmp_path / "out")]
    run_finetune.main(["--model_name_or_path", str(classifier), "--knn", "--use_cpu", *data])
    assert_same(seen[0].a2mim.encoder.state_dict(), encoder_of(models[1]))


def test_the_card_of_a_classifier_stays_one(classifier, folder, tmp_path):
    data = ["--train_dir", str(folder), "--validation_dir", str(folder), "--output_dir", str(tmp_path / "out")]
    run_finetune.main(
        [
            "--model_name_or_path",
            str(classifier),
            "--knn",
            "--use_cpu",
            "--add_to_card",
            "--probe_strength",
            "1",
            *data,
        ]
    )
    card = (classifier / "README.md").read_text()
    assert "an image classifier" in card
    assert "pipeline_tag: image-classification" in card
    assert "| k-NN |" in card


def test_pre_training_goes_on_with_its_own_model(models, classifier, folder, tmp_path, caplog):
    """Not with the classifier beside which it lies, whose run is none of its own."""
    out = tmp_path / "out"
    argv = ["--model_name_or_path", str(classifier), "--train_dir", str(folder), "--output_dir", str(out), *FAST]
    with caplog.at_level(logging.INFO, "a2mim"):
        run_pretraining.main(argv)
    assert f"weights: the pre-training model in {classifier}/pretraining" in caplog.text
    assert_same(load_file(out / "model.safetensors"), trained(encoder_of(models[0])))
    record = json.loads((out / "training.json").read_text())
    assert record["earlier"] == [{"task": "masked image modelling"}]


def test_a_checkpoint_of_a_classifier_is_evaluated(models, folder, tmp_path, no_pictures):
    """As well as its export."""
    config = family_config("resnet", image_size=32, id2label={0: "cats", 1: "dogs"}, label2id={"cats": 0, "dogs": 1})
    torch.manual_seed(1)
    model = A2MIMForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "run" / "checkpoint-3")
    export_model(model, tmp_path / "export")
    probe = LinearProbe.from_encoder(model, layer=2)
    probe.save_pretrained(tmp_path / "probe")
    data = ["--train_dir", str(folder), "--validation_dir", str(folder), "--output_dir", str(tmp_path / "out")]
    found = [
        run_finetune.main(["--model_name_or_path", str(tmp_path / name), "--eval_only", "--use_cpu", *data])
        for name in ("run/checkpoint-3", "export", "probe")
    ]
    assert found[0]["eval_loss"] == pytest.approx(found[1]["eval_loss"], abs=1e-6)
    assert found[2]["eval_loss"] != pytest.approx(found[1]["eval_loss"], abs=1e-6)
    with pytest.raises(ValueError, match=r"run holds no checkpoint, .*name one, .*run/checkpoint-3"):
        load_classifier(str(tmp_path / "run"))


# Kinds


def upernet(encoder: A2MIMModel) -> UperNetForSemanticSegmentation:
    config = A2MIMConfig.for_encoder(architecture="test_resnet", image_size=32, out_indices=[1, 2, 3, 4])
    backbone = A2MIMBackbone(config)
    backbone.a2mim.encoder.load_state_dict(encoder)
    sizes = {"hidden_size": 8, "auxiliary_channels": 4, "auxiliary_in_channels": 192}
    model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=config, **sizes, **LABELS))
    model.backbone = backbone
    return model


def test_every_kind_of_root(models, tmp_path):
    pretraining, classifier = models
    weights = encoder_of(classifier)
    detector = A2MIMForObjectDetection(
        A2MIMDetectorConfig.for_encoder(architecture="test_resnet", image_size=32, fpn_channels=8, **LABELS)
    )
    detector.backbone.a2mim.encoder.load_state_dict(weights)
    probe = LinearProbe.from_encoder(classifier, layer=2)
    core = A2MIMModel(classifier.config)
    core.encoder.load_state_dict(weights)
    for name, model in {"own": classifier, "probe": probe, "core": core, "detector": detector}.items():
        model.save_pretrained(tmp_path / name)
    classifier.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    upernet(weights).save_pretrained(tmp_path / "segmenter")
    export_model(classifier, tmp_path / "export", pretraining=pretraining)
    export_model(core, tmp_path / "encoder")
    # What transformers makes of an export, fine-tuned by its own Trainer, say.
    AutoModelForImageClassification.from_pretrained(tmp_path / "export").save_pretrained(tmp_path / "wrapper")
    kinds = {"own": "a classifier of 3 classes", "probe": "a linear probe of 3 classes", "core": "an encoder"}
    kinds |= {"export": "a classifier of 3 classes", "encoder": "an encoder", "shards": "a classifier of 3 classes"}
    kinds |= {"detector": "a detector of 3 classes", "segmenter": "a segmenter of 3 classes"}
    kinds["wrapper"] = "a classifier of 3 classes"
    for name, what in kinds.items():
        found = open_pretrained(str(tmp_path / name))
        assert found.what == what
        assert found.config.input_size == (32, 32)
        assert found.names in (None, NAMES)
        assert_same(found.encoder_weights(), weights)
        model, _ = build_classifier(ClassifierArguments(model_name_or_path=str(tmp_path / name)), ["a", "b"])
        assert_same(model.a2mim.encoder.state_dict(), weights)
        args = DenseModelArguments(model_name_or_path=str(tmp_path / name))
        backbone = build_backbone(args, open_start(args))
        assert_same(backbone.a2mim.encoder.state_dict(), weights)
    assert not list((tmp_path / "shards").glob("model.safetensors"))
    with pytest.raises(ValueError, match="no pre-training model there: it holds a detector of 3 classes"):
        load_pretraining_model(str(tmp_path / "detector"))


def test_roots_that_lack_something(models, classifier, tmp_path):
    only = tmp_path / "only"
    shutil.copytree(classifier / "pretraining", only / "pretraining")
    found = open_pretrained(str(only))
    assert found.describe() == (
        f"the pre-training model in {only}/pretraining (its mask token and decoder are left out)"
    )
    assert_same(found.encoder_weights(), encoder_of(models[0]))
    # A root without its weights, or without its configuration, is broken: what lies beside it is no replacement.
    shutil.copy(classifier / "model.safetensors", only)
    with pytest.raises(ValueError, match=r"^model_name_or_path: .*only holds no checkpoint, it has no config\.json"):
        load_encoder(str(only))
    (classifier / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"classifier holds no weights, it has no model\.safetensors and no pytorch_model\.bin"
    ):
        load_encoder(str(classifier))
    (classifier / "model.safetensors").write_bytes(b"none")
    with pytest.raises(ValueError, match="the weights in .*classifier cannot be read"):
        load_encoder(str(classifier))
    (classifier / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="is no timm checkpoint.* that of a bert of transformers"):
        load_encoder(str(classifier))


def test_the_head_is_left_out_with_its_buffers():
    """LeViT's classifiers have a BatchNorm of their own; a trained norm after pooling is no head."""
    args = {"architecture": "levit_128s", "image_size": 64}
    one, two = (A2MIMForImageClassification(A2MIMConfig.for_encoder(**args, **LABELS)) for _ in range(2))
    for name, buffer in one.a2mim.encoder.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(3)
    load_into_encoder(two, one.a2mim.encoder.state_dict())
    means = {n: b.mean().item() for n, b in two.a2mim.encoder.named_buffers() if n.endswith("running_mean")}
    assert {value for name, value in means.items() if name.startswith("head")} == {0.0}
    assert {value for name, value in means.items() if not name.startswith("head")} == {3.0}
    pooled = {"architecture": "test_vit", "image_size": 32, "model_args": {"global_pool": "avg"}}
    one, two = (A2MIMForImageClassification(A2MIMConfig.for_encoder(**pooled, **LABELS)) for _ in range(2))
    one.a2mim.encoder.fc_norm.weight.data.fill_(2)
    load_into_encoder(two, one.a2mim.encoder.state_dict())
    assert two.a2mim.encoder.fc_norm.weight.unique().tolist() == [2]


# Files of timm


@pytest.mark.parametrize(
    ("architecture", "args", "size"),
    [
        ("test_resnet", {"num_classes": 3, "in_chans": 1}, (160, 160)),
        ("test_resnet", {"num_classes": 3, "global_pool": "avgmax"}, (160, 160)),
        ("test_resnet", {"num_classes": 0, "global_pool": ""}, (160, 160)),
        ("test_vit", {"num_classes": 3, "img_size": (64, 32)}, (64, 32)),
        ("test_vit", {"num_classes": 3, "global_pool": "avg"}, (160, 160)),
        ("test_efficientnet", {"num_classes": 3, "drop_path_rate": 0.1}, (160, 160)),
    ],
)
def test_what_timm_saves(architecture, args, size, tmp_path):
    """`save_for_hf` writes what the model was made with, `num_classes` and `global_pool` among it."""
    torch.manual_seed(0)
    theirs = timm.create_model(architecture, **args).eval()
    for norm in (module for module in theirs.modules() if hasattr(module, "running_mean")):
        norm.running_mean.normal_()
    timm.models.save_for_hf(theirs, tmp_path, safe_serialization=True)
    config, _ = load_encoder(str(tmp_path))
    assert (config.input_size, config.num_channels) == (size, args.get("in_chans", 3))
    model, _ = build_classifier(ClassifierArguments(model_name_or_path=str(tmp_path)), ["a", "b"])
    own = model.a2mim.encoder.state_dict()
    head = {name for name in own if own[name].shape != theirs.state_dict().get(name, own[name]).shape}
    assert_same(own, {n: v for n, v in theirs.state_dict().items() if n not in head and "classifier" not in n})
    pixels = torch.randn(2, config.num_channels, *size)
    with torch.no_grad():
        assert torch.equal(model.eval().a2mim.encoder.forward_features(pixels), theirs.forward_features(pixels))
        if args["num_classes"]:
            whole = load_classifier(str(tmp_path))
            assert torch.equal(whole(pixels).logits, theirs(pixels))
            assert A2MIMForImageClassification.from_pretrained(tmp_path).config.num_labels == 3


# From Python


CLASSES = (A2MIMModel, A2MIMBackbone, A2MIMForPreTraining, A2MIMForImageClassification, LinearProbe)
CLASSES += (A2MIMForObjectDetection,)


def test_a_new_head_on_the_root(models, classifier, caplog):
    """With `ignore_mismatched_sizes`, timm's first values of a head for 5 classes, on the encoder's weights."""
    found = A2MIMForImageClassification.from_pretrained(classifier, num_labels=5, ignore_mismatched_sizes=True)
    assert "MISMATCH" in caplog.text  # as transformers says it
    new, old = found.a2mim.encoder.state_dict(), models[1].a2mim.encoder.state_dict()
    other = {name for name, value in new.items() if value.shape != old[name].shape}
    assert other == {"fc.weight", "fc.bias"}
    assert_same({k: v for k, v in old.items() if k not in other}, {k: v for k, v in new.items() if k not in other})
    assert 0.005 < new["fc.weight"].std() < 1
    assert new["fc.bias"].abs().max() < 1
    assert found.config.num_labels == 5


def test_models_from_the_root(models, classifier, tmp_path, caplog):
    """The weights that are there, or the subfolder that has more; never new ones."""
    pretraining, fine_tuned = models
    encoder = export_model(pretraining, tmp_path / "encoder")
    has = {encoder: {A2MIMModel, A2MIMBackbone}}
    has[classifier] = has[encoder] | {A2MIMForImageClassification}
    pixels = torch.randn(2, 3, 32, 32)
    for folder, model in ((encoder, pretraining), (classifier, fine_tuned)):
        for cls in CLASSES:
            if cls not in has[folder]:
                with pytest.raises(ValueError, match=f'which {cls.__name__} needs; .*subfolder="pretraining"'):
                    cls.from_pretrained(folder)
                continue
            found = cls.from_pretrained(folder)
            assert found.config.input_size == (32, 32)
            weights = {name.split("encoder.", 1)[1]: value for name, value in found.state_dict().items()}
            assert_same(model.a2mim.encoder.state_dict(), weights)
            assert not found.training
    assert A2MIMBackbone.from_pretrained(encoder, out_indices=[1, 3]).channels == [32, 192]
    again = A2MIMForImageClassification.from_pretrained(str(classifier), dtype=torch.float64)
    assert again.config.id2label == dict(enumerate(NAMES))
    with torch.no_grad():
        torch.testing.assert_close(again(pixels.double()).logits.float(), fine_tuned(pixels).logits)
    with pytest.raises(ValueError, match=r"is of shape \(3, 96\), with this configuration .* has \(5, 96\)"):
        A2MIMForImageClassification.from_pretrained(classifier, num_labels=5)
    half = AutoModelForImageClassification.from_pretrained(classifier, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    for folder, name, dtype in (
        (classifier, "dtype", torch.float32),
        (classifier, "torch_dtype", torch.float32),
        (tmp_path / "half", "dtype", torch.bfloat16),
    ):
        assert A2MIMForImageClassification.from_pretrained(folder, **{name: "auto"}).dtype == dtype
    with pytest.raises(ValueError, match="mask_token.*subfolder"):
        A2MIMModel.from_pretrained(encoder, use_mask_token=True)
    with pytest.raises(ValueError, match="pyramid"):
        A2MIMBackbone.from_pretrained(encoder, out_indices=[1, 2, 3, 4], feature_pyramid=True)
    assert A2MIMConfig.from_pretrained(classifier).id2label == dict(enumerate(NAMES))
    shutil.rmtree(encoder / "pretraining")
    with pytest.raises(ValueError, match="there is no subfolder pretraining/ with a pre-training model either"):
        A2MIMForPreTraining.from_pretrained(encoder)
    assert "LOAD REPORT" not in caplog.text


def test_models_from_a_segmenter(models, tmp_path):
    upernet(encoder_of(models[1])).save_pretrained(tmp_path)
    found = A2MIMModel.from_pretrained(tmp_path)
    assert_same(found.encoder.state_dict(), encoder_of(models[1]))
    with pytest.raises(ValueError, match="a segmenter of 3 classes, without .*decoder"):
        A2MIMForPreTraining.from_pretrained(tmp_path)


# The Hub


def put(hub, folder, name="org/x"):
    hub.put(name, {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()})


def test_repositories(hub, models, classifier, monkeypatch):
    put(hub, classifier)
    model, start = build_classifier(ClassifierArguments(model_name_or_path="org/x"), ["a", "b"])
    assert_same(model.a2mim.encoder.state_dict(), encoder_of(models[1]))
    assert start.describe() == "the classifier in org/x (its 3-class head is left out)"
    assert_same(load_pretraining_model("org/x").state_dict(), models[0].state_dict())
    assert_same(A2MIMModel.from_pretrained("org/x").encoder.state_dict(), encoder_of(models[1]))
    with pytest.raises(ValueError, match='subfolder="pretraining"'):
        A2MIMForPreTraining.from_pretrained("org/x")
    models[0].save_pretrained(classifier / "own")
    put(hub, classifier / "own", "org/own")  # its root is a pre-training model
    assert_same(load_pretraining_model("org/own").state_dict(), models[0].state_dict())
    with pytest.raises(
        ValueError, match="^model_name_or_path: org/none cannot be read: .* no repository of that name"
    ):
        load_encoder("org/none")
    with pytest.raises(ValueError, match="^model_name_or_path: org/x has no revision 'v2'"):
        load_encoder("org/x", revision="v2")
    hub.put("org/empty", {"README.md": b""})
    with pytest.raises(ValueError, match=r"org/empty holds no checkpoint, it has no config\.json"):
        load_encoder("org/empty")


def test_a_hub_that_cannot_be_asked(hub, models, classifier, folder, monkeypatch, caplog):
    put(hub, classifier)
    for name in ("config.json", "model.safetensors"):  # all that AutoModel needs
        hf_hub_download("org/x", name)
    hub.put("org/plain", {"config.json": (classifier / "config.json").read_bytes()})
    assert find_file("org/plain", "config.json") is not None
    assert find_file("org/plain", "model.safetensors") is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    arguments = ClassifierArguments(model_name_or_path="org/x")
    model, start = build_classifier(arguments, ["a", "b"])
    assert_same(model.a2mim.encoder.state_dict(), encoder_of(models[1]))
    assert pretraining_beside(start) is None
    assert (
        "the result will hold no pretraining/, as that of org/x: model_name_or_path: org/x is no folder" in caplog.text
    )
    assert encoder_provenance(arguments) == {
        "base_model": "org/x",
        "start": "a classifier of 3 classes",
        "earlier": [{}],
    }
    assert "the runs behind org/x are not known: " in caplog.text
    # What the Hub said when it was asked holds: there are no weights.
    with pytest.raises(ValueError, match=r"org/plain .*the Hub could not be asked for model\.safetensors\.index"):
        load_encoder("org/plain")
    message = r"^model_name_or_path: org/none is no folder here, .* this process is offline \(HF_HUB_OFFLINE\)"
    for call in (load_encoder, load_classifier, load_pretraining_model):
        with pytest.raises(ValueError, match=message):
            call("org/none")
    data = ["--model_name_or_path", "org/none", "--train_dir", str(folder), "--output_dir", str(classifier / "out")]
    for main in (run_pretraining.main, run_finetune.main):
        with pytest.raises(ValueError, match=message):
            main(data)
    with pytest.raises(ValueError, match=message):
        open_start(DenseModelArguments(model_name_or_path="org/none"))
    assert not (classifier / "out").exists()


def test_a_hub_that_is_down(hub, classifier, monkeypatch):
    put(hub, classifier)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for status in (503, 0):
        hub.fail_next(status, times=20)
        with pytest.raises(ValueError, match="the Hub could not be asked for config.json .*Error: "):
            load_encoder("org/x")
        hub.failures.clear()
    expected = load_encoder("org/x")[1]
    hub.fail_next(0, times=20)
    assert_same(load_encoder("org/x")[1], expected)  # from the cache
