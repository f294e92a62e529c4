"""What comes from others stays where it belongs: names in archives, repositories and configurations lead nowhere else,
and no code in them runs."""

import contextlib
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

import run_pretraining
from modeling_a2mim import A2MIMConfig, A2MIMForImageClassification, A2MIMForPreTraining
from modeling_a2mim.commands.convert import main as convert
from modeling_a2mim.commands.push import main as push
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.export.loading import load_encoder, load_pretraining_model
from modeling_a2mim.training.checkpoints import MANIFEST, verify

from ..families import family_config


pytestmark = pytest.mark.usefixtures("one_thread")
TRAIN = ["--architecture", "test_convnext", "--image_size", "32", "--mask_patch_size", "8", "--mask_site", "-3"]
TRAIN += ["--use_cpu", "--max_steps", "1"]
TRAIN += ["--per_device_train_batch_size", "2", "--disable_tqdm", "True", "--max_skipped_ratio", "1"]
EVIL = """
from pathlib import Path
Path(r"{canary}").write_text("executed")
from transformers import PretrainedConfig as EvilConfig, PreTrainedModel as EvilModel
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_model(A2MIMForPreTraining(family_config("resnet")), tmp_path_factory.mktemp("exported"))


@pytest.fixture
def place(tmp_path, monkeypatch, exported):
    """`outside` with a canary that nobody may touch or add to, and `outside/inside/work`, where things are done."""
    outside = tmp_path / "outside"
    work = outside / "inside" / "work"
    work.mkdir(parents=True)
    (outside / "secret.png").write_bytes(png())
    (outside / "weights.pth").write_bytes(b"not to be read")
    shutil.copytree(exported, work / "model")
    monkeypatch.chdir(work)
    before = listing(outside, work)
    yield work
    assert listing(outside, work) == before
    assert not (outside / "canary").exists()


def listing(outside, work):
    return {p: p.is_file() and p.read_bytes() for p in outside.rglob("*") if work not in (p, *p.parents)}


def png():
    file = io.BytesIO()
    load_images()[0]["image"].save(file, "PNG")
    return file.getvalue()


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# Archives


LINKS = {"a symbolic link": tarfile.SYMTYPE, "a hard link": tarfile.LNKTYPE, "a device": tarfile.CHRTYPE}


@pytest.mark.few(3)
@pytest.mark.parametrize("name", ["../../canary", "/{outside}/canary", "a/../../../canary", *LINKS])
def test_members_of_tar_files(place, name):
    """They are read where they lie; links and devices hold no image."""
    outside = place.parent.parent
    with tarfile.open(place / "shard.tar", "w") as archive:
        for number in range(3):
            member = tarfile.TarInfo(f"{name.format(outside=outside)}{number}.png")
            if name in LINKS and number == 1:
                member.type, member.linkname = LINKS[name], "../../secret.png"
                archive.addfile(member)
            else:
                member.size = len(png())
                archive.addfile(member, io.BytesIO(png()))
    source = load_images(place / "shard.tar", streaming=True)
    assert len(source) == (2 if name in LINKS else 3)
    run_pretraining.main([*TRAIN, "--train_dir", str(place / "shard.tar"), "--streaming", "--output_dir", "run"])
    if name not in LINKS:  # datasets prepares links by following them inside the archive
        images = load_images(place / "shard.tar")
        assert len(images) == 3


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_members_of_archives_of_images(place, kind):
    """Which `datasets` unpacks into its cache."""
    outside = place.parent.parent
    names = ["../../../canary0.png", f"{outside}/canary1.png", "a/../../../../canary2.png", "good.png"]
    if kind == "zip":
        with zipfile.ZipFile(place / "images.zip", "w") as archive:
            for name in names:
                archive.writestr(name, png())
    else:
        with tarfile.open(place / "images.tar.gz", "w:gz") as archive:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(png())
                archive.addfile(member, io.BytesIO(png()))
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, str(outside)
            archive.addfile(link)
            inside = tarfile.TarInfo("link/canary3.png")
            inside.size = len(png())
            archive.addfile(inside, io.BytesIO(png()))
    with contextlib.suppress(ValueError, OSError, datasets.exceptions.DatasetGenerationError):
        load_images(place / f"images.{kind}")  # refused, or without the strangers


def test_members_of_zips(place):
    """A checkpoint is a zip; its members are never unpacked to the disk."""
    with zipfile.ZipFile(place / "in.pth", "w") as archive:
        for name in ("../../canary", "archive/../../../canary", "archive/data.pkl"):
            archive.writestr(name, "content")
    with pytest.raises(SystemExit):
        convert(["in.pth", "out"])
    assert not (place / "out").exists()


def test_rows_that_name_files_of_this_machine(place, hub):
    """Of a dataset from the Hub."""
    rows = {"bytes": [None, None, png(), png()], "path": ["../../secret.png", str(place.parent.parent / "secret.png")]}
    rows["path"] += ["a.png", "b.png"]
    images = [{"bytes": data, "path": path} for data, path in zip(*rows.values(), strict=True)]
    table = datasets.Dataset.from_dict({"image": images}).data.table
    features = datasets.Features({"image": datasets.Image()})
    dataset = datasets.Dataset(table).cast(features)
    file = io.BytesIO()
    pq.write_table(dataset.data.table, file)
    hub.put("org/images", {"data/train-00000-of-00001.parquet": file.getvalue()}, repo_type="dataset")
    source = load_images("org/images", streaming=True).select("image")
    found = [value for value, _ in source.read(range(4))]
    assert ["names a file of this machine" in str(value) for value in found] == [True, True, False, False]


# Repositories


def test_repositories_with_names_that_lead_outside(place, hub):
    files = {"config.json": b"{}", "../../canary": b"evil", "a/../../../canary": b"evil", "/canary": b"evil"}
    hub.put("org/x", files)
    with pytest.raises(ValueError, match="escape|outside|Invalid|invalid|not allowed|illegal"):
        snapshot_download("org/x", local_dir=place / "down")
    hub.put("org/images", {"../../canary.parquet": b"evil", "x/../../../canary.png": png()}, repo_type="dataset")
    for options in ([], ["--streaming"]):
        with pytest.raises((ValueError, OSError, RuntimeError)):
            run_pretraining.main([*TRAIN, "--dataset_name", "org/images", *options, "--output_dir", "run"])


@pytest.mark.parametrize("shard", ["../../weights.pth", "{outside}/weights.pth", "../../canary.safetensors"])
def test_lists_of_shards(place, hub, shard):
    """An index of weights names files; these are outside of its folder."""
    shard = shard.format(outside=place.parent.parent)
    index = {"metadata": {}, "weight_map": {"decoder.weight": shard, "decoder.bias": shard}}
    folder = place / "model" / "pretraining"
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="names a file in another folder"):
        load_pretraining_model(str(place / "model"))
    hub.put("org/x", {p.relative_to(place / "model").as_posix(): p.read_bytes() for p in folder.iterdir()})
    with pytest.raises((ValueError, OSError)):
        load_pretraining_model("org/x")


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "local-dir:../.."},
        {"architecture": "hf-hub:org/evil"},
        {"model_args": {"checkpoint_path": "../../weights.pth"}},
        {"model_args": {"pretrained": True}},
        {"model_args": {"pretrained_cfg": {"file": "../../weights.pth"}}},
        {"model_args": {"cache_dir": "../../canary"}},
    ],
    ids=str,
)
def test_configurations_that_name_files(place, change):
    edit(place / "model" / "pretraining" / "config.json", **change)
    field = next(iter(change))
    with pytest.raises(ValueError, match=f"{field}: "):
        load_pretraining_model(str(place / "model"))
    shutil.rmtree(place / "model" / "pretraining")
    edit(place / "model" / "config.json", **change)
    with pytest.raises(ValueError, match=f"{field}: "):
        load_encoder(str(place / "model"))


def test_code_in_repositories_does_not_run(place, hub):
    canary = place.parent.parent / "canary"
    remote = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}
    for name in ("config.json", "pretraining/config.json"):
        edit(place / "model" / name, auto_map=remote)
    files = {p.relative_to(place / "model").as_posix(): p for p in (place / "model").rglob("*") if p.is_file()}
    files = {name: path.read_bytes() for name, path in files.items()}
    code = EVIL.format(canary=canary).encode()
    hub.put("org/x", {**files, "evil.py": code, "pretraining/evil.py": code})
    load_pretraining_model("org/x")
    load_encoder("org/x")
    assert AutoModel.from_pretrained("org/x").config.model_type == "timm_wrapper"
    edit(place / "model" / "config.json", model_type="evil")
    hub.put("org/x", {"config.json": (place / "model" / "config.json").read_bytes()})
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoConfig.from_pretrained("org/x")


# Folders of ours


def test_checkpoints_that_list_files_outside(place):
    save_file({"x": torch.zeros(1)}, place / "model.safetensors")
    folder = place / "run" / "checkpoint-1"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps({"files": {"../../../../secret.png": {"size": 1, "crc32": 0}}}))
    assert verify(folder)


@pytest.mark.parametrize("name", ["../../canary", "org/../canary", "/canary", "org/..", "https://x/y"])
def test_names_of_repositories(place, hub, name):
    with pytest.raises(SystemExit) as ended:
        push(["model", name])
    assert ended.value.code == 2
    assert not hub.repositories
    with pytest.raises(ValueError, match=r"^model_name_or_path: "):
        load_encoder(name)


def test_names_of_classes(place):
    """Written into files, never used as names of files."""
    names = ["../../canary", "/canary", "hf-hub:x"]
    config = family_config("resnet", id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
    export_model(A2MIMForImageClassification(config), place / "classifier")
    assert json.loads((place / "classifier" / "config.json").read_text())["label_names"] == names
    assert {p.name for p in (place / "classifier").iterdir()} == {"README.md", "config.json", "model.safetensors"}


def test_no_source_trusts_remote_code():
    root = Path(__file__).resolve().parents[2]
    sources = [*root.glob("*.py"), *root.glob("modeling_a2mim/**/*.py"), *root.glob("benchmarks/*.py")]
    texts = {path.name: path.read_text() for path in sources}
    assert len(texts) > 20
    for name, text in texts.items():
        # The forbidden words themselves: looked for in what is used, not in tests.
        assert "trust_remote_code=True" not in text, name
        assert "weights_only=False" not in text, name
        assert "pickle.load" not in text, name


def test_the_configuration_is_data():
    with pytest.raises(ValueError, match="^architecture: "):
        A2MIMConfig(architecture="local-dir:/etc")
