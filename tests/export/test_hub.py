"""What the Hub gets: exactly these files, in one commit, without secrets; over HTTP, from a Hub of our own."""

import io
import json
import logging
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard, constants
from PIL import Image
from transformers import AutoBackbone, AutoModel, AutoModelForObjectDetection, AutoModelForSemanticSegmentation

import run_finetune
import run_pretraining
from benchmarks import shapes
from modeling_a2mim import A2MIMBackbone, A2MIMForImageClassification, A2MIMForPreTraining, A2MIMModel
from modeling_a2mim.commands.push import main
from modeling_a2mim.data.transforms import FineTuneTransform
from modeling_a2mim.export.folder import export_model, timm_pretrained_cfg
from modeling_a2mim.export.hub import check_files, push_folder, uploaded_files
from modeling_a2mim.export.loading import load_encoder, load_pretraining_model
from modeling_a2mim.models.linear_probe import LinearProbe

from ..families import family_config
from ..training.test_trainer import make_trainer, weights


pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = ["README.md", "config.json", "model.safetensors", "pretraining/config.json", "pretraining/model.safetensors"]
ENCODER = sorted([*WEIGHTS, "loss_curve.png", "reconstruction.png", "training.json"])
RESULTS = ".eval_results/zalando-datasets-fashion_mnist.yaml"
PICTURES = ["confusion_matrix.png", "example.png", "loss_curve.png", "precision_recall_curve.png", "roc_curve.png"]
CLASSIFIER = sorted([*WEIGHTS, RESULTS, *PICTURES, "training.json"])
SMALL = ["--architecture", "test_convnext", "--image_size", "32", "--mask_patch_size", "8", "--mask_site", "-3"]
FAST = [
    "--use_cpu",
    "--disable_tqdm",
    "True",
    "--max_steps",
    "2",
    "--per_device_train_batch_size",
    "8",
    "--logging_steps",
    "1",
]
FAST += ["--max_train_samples", "16", "--max_eval_samples", "10", "--save_steps", "1", "--push_to_hub"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return export_model(A2MIMForPreTraining(family_config("resnet")), folder)


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "model")


def clutter(folder):
    """What lies about in folders of runs, none of which may leave."""
    for name in (
        "training_args.bin",
        "optimizer.pt",
        "pytorch_model.bin",
        "trainer_state.json",
        "all_results.json",
        ".env",
        "notes.png",
        "errors.csv",
        "worst_examples.png",
        "predictions.txt",
        "pretraining/optimizer.pt",
        "pretraining/training_args.bin",
        "pretraining/model.safetensors.bak",
        "checkpoint-1/model.safetensors",
        "checkpoint-1/optimizer.pt",
        "reconstructions/step-0000001.png",
        "reconstructions/README.md",
        "runs/events.out.tfevents.1",
        ".eval_results/notes.txt",
        ".eval_results/../README.md.orig",
        ".git/config",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")


# Runs


@pytest.mark.ci
def test_both_scripts_push(hub, tmp_path):
    """And what they push can be trained on, fine-tuned and pushed again; no token is anywhere in it."""
    planted = "hf_plantedLoginSecret0123456789"
    Path(constants.HF_TOKEN_PATH).write_text(planted)  # as `hf auth login` does
    common = [*FAST, "--hub_token", hub.token, "--hub_license", "apache-2.0"]
    encoder = [*SMALL, *common, "--hub_model_id", "org/encoder", "--hub_private_repo", "True"]
    run_pretraining.main([*encoder, "--hub_strategy", "end", "--output_dir", str(tmp_path / "encoder")])
    assert hub.commits("org/encoder")[-1] == "End of training"
    assert hub.received_paths("org/encoder") == ENCODER
    assert hub.repositories["models", "org/encoder"].private

    classifier = ["--model_name_or_path", "org/encoder", *common, "--hub_model_id", "org/classifier"]
    classifier += ["--hub_strategy", "every_save", "--hub_always_push", "--labels_per_class", "1"]
    run_finetune.main([*classifier, "--output_dir", str(tmp_path / "classifier")])
    messages = hub.commits("org/classifier")[-3:]
    assert messages == ["Training in progress, step 1", "Training in progress, step 2", "End of training"]
    received = [set(hub.received_paths("org/classifier", -n)) for n in (1, 2, 3)]
    assert set().union(*received) == set(CLASSIFIER)
    assert set(hub.files("org/classifier")) == {*CLASSIFIER, ".gitattributes"}

    encoder, classifier = (
        ModelCard(hub.files(name)["README.md"].decode()) for name in ("org/encoder", "org/classifier")
    )
    tags = encoder.data.pipeline_tag, classifier.data.pipeline_tag
    assert tags == ("image-feature-extraction", "image-classification")
    assert (classifier.data.base_model, classifier.data.metrics) == ("org/encoder", ["accuracy"])
    assert "ORG/NAME" not in encoder.text + classifier.text
    assert 'from_pretrained("org/encoder")' in encoder.text
    assert classifier.data.widget[0]["src"].endswith("org/classifier/resolve/main/example.png")
    assert len(json.loads(hub.files("org/classifier")["config.json"])["label_names"]) == 10

    again = [*SMALL, *common, "--hub_model_id", "org/more", "--hub_strategy", "end"]
    again += ["--model_name_or_path", "org/encoder", "--model_revision", "main"]
    run_pretraining.main([*again, "--output_dir", str(tmp_path / "more")])
    assert hub.received_paths("org/more") == ENCODER
    for name in ("org/more", "org/classifier"):  # which know what the repository says of their encoder
        (earlier,) = json.loads(hub.files(name)["training.json"])["earlier"]
        assert (earlier["task"], earlier["steps"], earlier["images"]) == ("masked image modelling", 2, 16)
    for secret in (hub.token, planted, str(tmp_path)):
        assert secret.encode() not in hub.received()
    assert hub.unknown == []


@pytest.mark.ci
@pytest.mark.parametrize(
    "task", [pytest.param("semantic-segmentation", marks=pytest.mark.slow), "instance-segmentation"]
)
def test_dense_tasks_push(hub, tmp_path, exported, task):
    """From an encoder of the Hub, and what is pushed is loaded from there."""
    push_folder(exported, "org/encoder")
    data = shapes.write(tmp_path / "shapes", train=4, test=2, channels=3)
    small = ["--task", task, "--max_steps", "2", "--use_cpu", "--save_steps", "1", "--logging_steps", "1"]
    small += {"s": ["--head_channels", "16"], "i": ["--fpn_channels", "16", "--box_channels", "32"]}[task[0]]
    source = ["--model_name_or_path", "org/encoder", "--image_size", "64", "--dataset_name", str(data)]
    push = ["--push_to_hub", "--hub_token", hub.token, "--hub_model_id", "org/dense", "--disable_tqdm", "True"]
    push += ["--per_device_train_batch_size", "2"]
    run_finetune.main([*small, *source, *push, "--output_dir", str(tmp_path / "out")])
    files = ["README.md", "config.json", "loss_curve.png", "model.safetensors", "predictions.png"]
    files += ["preprocessor_config.json", "training.json"]
    assert sorted(set(hub.files("org/dense")) - {".gitattributes"}) == files
    card = ModelCard(hub.files("org/dense")["README.md"].decode())
    assert card.data.base_model == "org/encoder"
    assert 'from_pretrained("org/dense")' in card.text
    auto = AutoModelForSemanticSegmentation if task[0] == "s" else AutoModelForObjectDetection
    model = auto.from_pretrained("org/dense")
    assert list(model.config.id2label.values())[-10:] == list(shapes.CLASSES)
    assert hub.unknown == []


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint"])
def test_trainer_pushes_while_training(hub, tmp_path, caplog, strategy):
    hub.fail_next(500, path_contains="commit")
    trainer = make_trainer(
        tmp_path, max_steps=3, push_to_hub=True, hub_model_id="org/x", hub_strategy=strategy, hub_always_push=True
    )
    with caplog.at_level(logging.WARNING, "a2mim"):
        trainer.train()
    assert "a push while training failed: " in caplog.text
    assert ("no optimiser state" in caplog.text) is (strategy == "checkpoint")
    assert hub.commits("org/x")[-2:] == ["Training in progress, step 2", "Training in progress, step 3"]
    before = hub.received_paths("org/x")
    assert set(before) <= set(ENCODER)
    info = trainer.push_to_hub("The end", finetuned_from="org/older", tags="birds", dataset=["org/birds"])
    assert info.commit_message == "The end"
    card = ModelCard(hub.files("org/x")["README.md"].decode())
    assert (card.data.base_model, card.data.datasets) == ("org/older", ["org/birds"])
    assert "birds" in card.data.tags
    assert set(hub.files("org/x")) == {*ENCODER, ".gitattributes"}
    assert not any(name.encode() in hub.received() for name in ("optimizer.pt", "training_args", "rng_state"))
    assert (tmp_path / "checkpoint-3" / "optimizer.pt").exists()


def test_trainer_push_options(hub, tmp_path):
    trainer = make_trainer(tmp_path / "name-of-folder", max_steps=2, hub_pictures=False)
    trainer.train()
    sent = trainer.push_to_hub(dry_run=True)
    assert sent == [name for name in ENCODER if name != "reconstruction.png"]
    assert hub.requests == []
    trainer.push_to_hub("hello", private=True, revision="trial", blocking=False).result()
    assert hub.received_paths("tester/name-of-folder") == sent
    assert hub.commits("tester/name-of-folder")[-1] == "hello"
    assert "README.md" not in hub.files("tester/name-of-folder", "main")
    card = hub.files("tester/name-of-folder", "trial")["README.md"].decode()
    assert "reconstruction.png" not in card
    assert "loss_curve.png" in card
    loaded = load_pretraining_model("tester/name-of-folder", revision="trial").state_dict()
    assert all((loaded[name] == value).all() for name, value in weights(trainer).items())
    name = "tester/name-of-folder"
    assert AutoModel.from_pretrained(name, revision="trial").config.architecture == "test_convnext"
    assert timm.create_model(f"hf-hub:{name}@trial", pretrained=True).num_classes == 0
    backbone = AutoBackbone.from_pretrained(name, subfolder="pretraining", revision="trial")
    assert type(backbone) is A2MIMBackbone
    assert all((loaded[n] == value).all() for n, value in backbone.state_dict().items())
    with pytest.raises(ValueError, match=r"^model_name_or_path: .* holds no checkpoint, it has no config\.json"):
        load_pretraining_model("tester/name-of-folder")
    pretraining = load_pretraining_model("tester/name-of-folder", revision="trial")
    _, stored = load_encoder("tester/name-of-folder", revision="trial")
    assert all(torch.equal(pretraining.a2mim.encoder.state_dict()[name], value) for name, value in stored.items())


def test_strategy_that_would_push_optimiser_states(tmp_path):
    with pytest.raises(ValueError, match="^hub_strategy: expected end, every_save or checkpoint; .* optimiser"):
        make_trainer(tmp_path, push_to_hub=True, hub_strategy="all_checkpoints")


# Folders


def test_only_the_export_leaves(hub, folder):
    clutter(folder)
    assert uploaded_files(folder) == WEIGHTS
    push_folder(folder, "org/x")
    assert hub.received_paths("org/x") == WEIGHTS
    assert b"mine" not in hub.received()


@pytest.mark.few(2)
@pytest.mark.parametrize("family", ["resnet", "vit"])
@pytest.mark.parametrize("classifies", [False, True])
def test_the_code_of_a_card_runs(hub, tmp_path, monkeypatch, family, classifies):
    pretraining = A2MIMForPreTraining(family_config(family))
    model = A2MIMForImageClassification(family_config(family, num_labels=3)) if classifies else pretraining
    push_folder(export_model(model, tmp_path / "model", pretraining), "org/x")
    image = Image.new("RGB", (80, 90), "red")
    image.save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", hub.files("org/x")["README.md"].decode(), re.DOTALL)
    assert len(blocks) == 4
    names = {"image": image}
    for block in blocks:
        exec(block, names)
    assert names["label"] in ("LABEL_0", "LABEL_1", "LABEL_2") if classifies else names["features"].ndim == 2
    assert names["answers"]
    assert len(names["backbone"](torch.zeros(1, 3, 64, 64)).feature_maps) == len(names["backbone"].out_indices)


@pytest.mark.few(4)
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA"), (5, None)])
@pytest.mark.parametrize("classifies", [False, True])
def test_the_code_of_a_card_takes_any_file(tmp_path, monkeypatch, channels, mode, classifies):
    """As copied, on files in modes that the processor itself would not take, or would misread."""
    model = (A2MIMForImageClassification if classifies else A2MIMForPreTraining)(
        family_config("resnet", num_channels=channels, **({"num_labels": 3} if classifies else {}))
    )
    export_model(model, tmp_path / "model")
    code = re.findall(r"```python\n(.*?)```", (tmp_path / "model" / "README.md").read_text(), re.DOTALL)[0]
    code = code.replace("ORG/NAME", str(tmp_path / "model"))
    monkeypatch.chdir(tmp_path)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 80, 3), dtype=np.uint8))
    for kind in ("RGB", "L", "LA", "P", "RGBA", "1", "CMYK"):
        names, image = {}, photo.convert(kind)
        image.save(tmp_path / "photo.jpg", "TIFF" if kind == "CMYK" else "PNG")  # read by content
        exec(code, names)
        pixels = names["inputs"]["pixel_values"]
        assert pixels.shape == (1, channels, 64, 64)
        assert names["label"].startswith("LABEL_") if classifies else names["features"].ndim == 2
        if mode is not None:  # what our own code makes of the same file
            own = FineTuneTransform(timm_pretrained_cfg(model.a2mim), train=False)(tmp_path / "photo.jpg")
            assert torch.equal(pixels[0], own["pixel_values"])
    if channels == 1:  # without the conversion it goes wrong
        with pytest.raises(RuntimeError, match="to have 1 channels"):
            names["model"](**names["processor"](photo, return_tensors="pt"))


def test_what_an_earlier_push_left_is_replaced(hub, folder):
    hub.put(
        "org/x", {"LICENSE": b"theirs", "training.json": b"{}", "pretraining/model-00001-of-00002.safetensors": b""}
    )
    push_folder(folder, "org/x")
    assert sorted(hub.files("org/x")) == ["LICENSE", *WEIGHTS]


def test_command_line(hub, folder, capsys):
    clutter(folder)
    main([str(folder), "org/x", "--dry_run"])
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in listed] == [*WEIGHTS, "org/x"]
    assert hub.requests == []
    options = [
        "--private",
        "--revision",
        "trial",
        "--commit_message",
        "Hello",
        "--license",
        "mit",
        "--base_model",
        "a/b",
    ]
    main([str(folder), "org/x", *options])
    assert hub.received_paths("org/x") == WEIGHTS
    assert hub.commits("org/x")[-1] == "Hello"
    assert hub.repositories["models", "org/x"].private
    card = ModelCard(hub.files("org/x", "trial")["README.md"].decode())
    assert (card.data.license, card.data.base_model, card.data.library_name) == ("mit", "a/b", "timm")
    assert capsys.readouterr().out.startswith("http")


def test_dry_run_marks_what_shows_images(hub, folder, capsys):
    for name in ("reconstruction.png", "loss_curve.png", "example.png"):
        (folder / name).write_bytes(png())
    main([str(folder), "org/x", "--dry_run"])
    *listed, total, note = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in listed if line.endswith(" *")] == ["example.png", "reconstruction.png"]
    assert sum("loss_curve.png" in line for line in listed) == 1
    assert total.endswith("bytes would go to org/x")
    assert note == "* shows images of the data: --no_pictures leaves it out"
    main([str(folder), "org/x", "--dry_run", "--no_pictures"])
    shown = capsys.readouterr().out
    assert "example.png" not in shown
    assert "*" not in shown
    assert "loss_curve.png" in shown


@pytest.mark.parametrize("kind", [A2MIMForPreTraining, A2MIMForImageClassification])
def test_command_line_with_a_checkpoint(hub, tmp_path, kind):
    kind(family_config("vit")).save_pretrained(tmp_path / "checkpoint-7")
    before = sorted((tmp_path / "checkpoint-7").iterdir())
    main([str(tmp_path / "checkpoint-7"), "org/x"])
    assert hub.received_paths("org/x") == (WEIGHTS if kind is A2MIMForPreTraining else WEIGHTS[:3])
    assert sorted((tmp_path / "checkpoint-7").iterdir()) == before


def test_command_line_with_a_linear_probe(hub, tmp_path, capsys):
    """As the classifier that it is equal to; where there is none, and of other models, not its encoder alone."""
    encoder = A2MIMModel(family_config("vit", num_labels=2))
    LinearProbe.from_encoder(encoder).save_pretrained(tmp_path / "pooled")
    main([str(tmp_path / "pooled"), "org/x"])
    assert hub.received_paths("org/x") == WEIGHTS[:3]
    LinearProbe.from_encoder(encoder, "all").save_pretrained(tmp_path / "stages")
    A2MIMBackbone(family_config("vit")).save_pretrained(tmp_path / "backbone")
    for name, message in (
        ("stages", "probe_layers: timm's classifier reads its own pooled features, not every stage"),
        ("backbone", f"folder: {tmp_path}/backbone holds A2MIMBackbone; expected an export, or A2MIMForPreTraining, "),
    ):
        with pytest.raises(SystemExit):
            main([str(tmp_path / name), "org/y"])
        assert f"error: {message}" in capsys.readouterr().err
    assert "org/y" not in hub.repositories


def test_command_line_says_what_is_wrong(hub, folder, tmp_path, capsys):
    for arguments, message in (
        ([tmp_path / "nowhere", "org/x"], "there is no such folder"),
        ([tmp_path, "org/x"], "no exported model, README.md and config.json and model.safetensors missing"),
        ([folder, "org/x/y"], "Repo id must be in the form"),
        ([folder, "../../etc"], "Repo id must"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, arguments)))
        assert ended.value.code == 2
        assert f"error: {message}" in capsys.readouterr().err.replace(f"{tmp_path}/nowhere: ", "").replace(
            f"{tmp_path}: ", ""
        )
    for status in (403, 0):  # refused, and no answer at all
        hub.fail_next(status, path_contains="create")
        with pytest.raises(SystemExit) as ended:
            main([str(folder), "org/x"])
        assert ended.value.code == 2
        assert capsys.readouterr().err.startswith("error: org/x: ")
    assert not hub.repositories


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


def png(**info):
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG", **info)
    return file.getvalue()


SECRET = b"hf_abcdefghijklmnopqrstuvwxyz012345"
BAD = {
    "a pickle": ("model.safetensors", pickle.dumps(Malicious()), "model.safetensors: no safetensors file"),
    "an empty shard": ("pretraining/model-00001-of-00001.safetensors", b"", "00001.safetensors: no safetensors file"),
    "a list": ("config.json", b"[1]", "config.json: cannot be read: expected a JSON object"),
    "no JSON": ("training.json", b"{", "training.json: cannot be read"),
    "no picture": ("example.png", b"#!/bin/sh", "example.png: cannot be read: expected a PNG"),
    "no results": (".eval_results/x.yaml", b"- value: 3", "x.yaml: cannot be read"),
    "an object": (".eval_results/x.yaml", b"!!python/object/apply:print [executed]", "x.yaml: cannot be read"),
    "no front matter": ("README.md", b"---\na: [\n---\n", "README.md: cannot be read"),
    "a token in the card": ("README.md", b"# use " + SECRET, "README.md: holds what looks like an access token"),
    "a token in the settings": ("config.json", b'{"t": "%s"}' % SECRET, "config.json: holds what looks like an acc"),
    "a token in a picture": ("example.png", png() + SECRET, "example.png: holds what looks like an access token"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_may_not_leave_is_named(hub, folder, capsys, case):
    name, content, message = BAD[case]
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        push_folder(folder, "org/x")
    assert hub.requests == []
    assert "executed" not in capsys.readouterr().out


def test_paths_and_other_secrets(hub, folder, tmp_path):
    card = (folder / "README.md").read_text()
    for text, message in (
        (f"{card}\nmade from {folder}/images", "names a path of this machine"),
        (f"{card}\n{hub.token}", "access token"),
        (f"{card}\nquite-another-secret", "access token"),
    ):
        (folder / "README.md").write_text(text)
        with pytest.raises(ValueError, match=f"^README.md: .*{message}"):
            check_files(folder, ["README.md"], ["quite-another-secret"])


def test_urls_are_no_paths(folder, tmp_path, monkeypatch):
    """`/datasets/` is where some people work."""
    monkeypatch.setattr(Path, "cwd", lambda: Path("/datasets"))
    url = "https://huggingface.co/datasets/org/images"
    (folder / "README.md").write_text(f"{(folder / 'README.md').read_text()}\n{url}")
    check_files(folder, ["README.md"])
    (folder / "README.md").write_text(f"{(folder / 'README.md').read_text()}\nin /datasets/birds")
    with pytest.raises(ValueError, match="names a path of this machine, /datasets/"):
        check_files(folder, ["README.md"])


def test_links_do_not_leave(hub, folder, tmp_path):
    (tmp_path / "passwd").write_text('{"root": 1}')
    (folder / "training.json").symlink_to(tmp_path / "passwd")
    with pytest.raises(ValueError, match="^training.json: a link is not uploaded"):
        push_folder(folder, "org/x")
    (folder / "training.json").unlink()
    (folder / "pretraining").rename(tmp_path / "elsewhere")
    (folder / "pretraining").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="a link is not uploaded"):
        push_folder(folder, "org/x")
    assert hub.requests == []
