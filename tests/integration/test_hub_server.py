"""The small Hub of the tests, asked by the libraries that ask the real one."""

import io
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import datasets
import pytest
import timm
import torch
from huggingface_hub import HfApi, HfFileSystem, ModelCard, get_session, hf_hub_download, snapshot_download, whoami
from huggingface_hub.errors import (
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, Trainer, TrainingArguments

from modeling_a2mim import A2MIMForImageClassification, A2MIMForPreTraining
from modeling_a2mim.export.folder import export_model

from ..families import family_config


pytestmark = pytest.mark.usefixtures("one_thread")
CARD = (
    "---\nlicense: apache-2.0\nlibrary_name: timm\npipeline_tag: image-feature-extraction\ntags:\n- a2mim\n---\n# X\n"
)


def png(i: int) -> bytes:
    Image.new("RGB", (8, 6), (i, 2 * i, 3 * i)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def asked(hub, method: str, part: str = "") -> list[str]:
    return [request.path for request in hub.requests if request.method == method and part in request.path]


@pytest.fixture
def files(tmp_path):
    """A folder with a regular file, an LFS file, an empty one and two that are to be deleted later."""
    folder = tmp_path / "files"
    (folder / "logs").mkdir(parents=True)
    for name, content in {"README.md": CARD, "a.txt": "a", "empty.png": "", "logs/1.txt": "1"}.items():
        (folder / name).write_text(content)
    (folder / "x.safetensors").write_bytes(bytes(range(256)) * 100)
    return folder


def test_repositories_are_made(hub):
    api = HfApi()
    assert whoami()["name"] == "tester"
    assert api.create_repo("org/open").repo_id == "org/open"
    assert api.create_repo("closed", private=True, repo_type="dataset").repo_id == "tester/closed"
    assert api.create_repo("org/open", exist_ok=True, private=True).repo_id == "org/open"
    with pytest.raises(HfHubHTTPError, match="You already created this model repo"):
        api.create_repo("org/open")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("stranger/open", exist_ok=True)
    assert api.model_info("org/open").private is False
    assert api.dataset_info("tester/closed").private is True
    assert list(hub.files("tester/closed", repo_type="dataset")) == [".gitattributes"]
    assert hub.unknown == []


def test_folders_are_uploaded(hub, files):
    api = HfApi()
    api.create_repo("org/x")
    first = api.upload_folder(repo_id="org/x", folder_path=files, commit_message="all of it")
    assert hub.commits("org/x") == ["initial commit", "all of it"]
    assert hub.received_paths("org/x") == ["README.md", "a.txt", "empty.png", "logs/1.txt", "x.safetensors"]
    assert hub.files("org/x")["x.safetensors"] == (files / "x.safetensors").read_bytes()
    assert len(asked(hub, "PUT")) == 1
    assert first.oid == api.model_info("org/x").sha == api.list_repo_refs("org/x").branches[0].target_commit
    shown = {entry.path: entry for entry in api.list_repo_tree("org/x", recursive=True)}
    assert shown["x.safetensors"].lfs.size == shown["x.safetensors"].size == 25600
    assert shown["a.txt"].lfs is None
    assert "logs" in shown
    assert [entry.path for entry in api.list_repo_tree("org/x", "logs")] == ["logs/1.txt"]
    assert [entry.path for entry in api.get_paths_info("org/x", ["logs", "a.txt", "none"])] == ["a.txt", "logs"]
    info = api.model_info("org/x")
    assert (info.pipeline_tag, info.library_name, info.tags) == ("image-feature-extraction", "timm", ["a2mim"])
    assert info.card_data.license == "apache-2.0"
    assert len(info.siblings) == 6

    (files / "a.txt").write_text("b")
    (files / "logs" / "1.txt").rename(files / "logs" / "2.txt")
    api.upload_folder(repo_id="org/x", folder_path=files, delete_patterns="logs/*")
    assert hub.received_paths("org/x") == ["a.txt", "logs/2.txt"]  # the others have not changed
    assert hub.files("org/x").keys() ^ hub.files("org/x", first.oid).keys() == {"logs/1.txt", "logs/2.txt"}
    api.delete_folder("logs", "org/x")
    assert sorted(hub.files("org/x")) == [".gitattributes", "README.md", "a.txt", "empty.png", "x.safetensors"]
    assert hub.unknown == []


def test_branches(hub, files):
    api = HfApi()
    api.create_repo("org/x")
    api.create_branch("org/x", branch="next/one")
    with pytest.raises(HfHubHTTPError, match="already exists"):
        api.create_branch("org/x", branch="next/one")
    api.create_branch("org/x", branch="next/one", exist_ok=True)
    api.upload_folder(repo_id="org/x", folder_path=files, revision="next/one")
    assert list(hub.files("org/x")) == [".gitattributes"]
    assert len(hub.files("org/x", "next/one")) == 6
    proposed = api.upload_file(path_or_fileobj=b"b", path_in_repo="b", repo_id="org/x", create_pr=True)
    assert list(hub.files("org/x", proposed.pr_revision)) == [".gitattributes", "b"]
    assert sorted(branch.name for branch in api.list_repo_refs("org/x").branches) == ["main", "next/one"]
    assert Path(hf_hub_download("org/x", "a.txt", revision="next/one")).read_text() == "a"
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("org/x", "a.txt", revision="none")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("org/x", "a.txt")


def test_downloads(hub, tmp_path):
    data = {"a/b c.txt": b"text", "x.safetensors": bytes(range(200))}
    sha = hub.put("org/x", data)
    for _ in range(2):
        for name, content in data.items():
            path = Path(hf_hub_download("org/x", name))
            assert path.read_bytes() == content
            assert sha in path.parts
    assert [request.method for request in hub.requests] == ["HEAD", "GET"] * 2 + ["HEAD"] * 2
    folder = Path(snapshot_download("org/x", local_dir=tmp_path / "copy"))
    assert {name: (folder / name).read_bytes() for name in data} == data
    url = f"{hub.endpoint}/org/x/resolve/main/x.safetensors"
    part = get_session().get(url, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, bytes(range(10, 20)))
    assert part.headers["Content-Range"] == "bytes 10-19/200"
    assert get_session().get(url, headers={"Range": "bytes=200-"}).status_code == 416
    with HfFileSystem().open("hf://org/x/x.safetensors", block_size=50) as file:
        file.seek(150)
        assert file.read(5) == bytes(range(150, 155))
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("org/none", "x")
    assert hub.unknown == []


def test_a_private_repository_needs_the_token(hub, monkeypatch):
    hub.put("org/x", {"a.txt": b"a"}, private=True)
    hub.put("org/open", {"a.txt": b"a"})
    monkeypatch.delenv("HF_TOKEN")
    for call in (HfApi().model_info, HfApi().list_repo_files, snapshot_download):
        with pytest.raises(RepositoryNotFoundError):
            call("org/x")
        assert call("org/open")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        HfApi(token="hf_wrong").model_info("org/x")
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi().upload_file(path_or_fileobj=b"b", path_in_repo="b", repo_id="org/open")
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi().create_repo("org/more")
    assert HfApi(token=hub.token).model_info("org/x").private
    assert hf_hub_download("org/x", "a.txt", token=hub.token)
    hub.put("stranger/x", {"a.txt": b"a"})
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi(token=hub.token).upload_file(path_or_fileobj=b"b", path_in_repo="b", repo_id="stranger/x")


def test_cards_are_checked(hub):
    HfApi().create_repo("org/x")
    ModelCard(CARD).push_to_hub("org/x")
    assert hub.files("org/x")["README.md"].decode() == CARD
    assert ModelCard.load("org/x").data.license == "apache-2.0"
    with pytest.raises(ValueError, match="library_name, pipeline_tag, tags of the right type"):
        ModelCard(CARD.replace("timm", "[timm]")).push_to_hub("org/x")
    with pytest.raises(ValueError, match="while parsing a flow node"):
        HfApi().upload_file(path_or_fileobj=b"---\ntags: [\n---\n", path_in_repo="README.md", repo_id="org/x")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        HfApi().upload_file(path_or_fileobj=b"# X\n", path_in_repo="README.md", repo_id="org/x")
    assert hub.commits("org/x")[1:] == ["Upload README.md with huggingface_hub"] * 2


@pytest.mark.parametrize("private", [False, True])
def test_models_are_loaded(hub, tmp_path, private):
    model = A2MIMForPreTraining(family_config("convnext")).eval()
    export_model(model, tmp_path / "encoder")
    HfApi().create_repo("org/x", private=private)
    HfApi().upload_folder(repo_id="org/x", folder_path=tmp_path / "encoder")
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.a2mim(pixels).last_hidden_state
        assert torch.equal(AutoModel.from_pretrained("org/x").eval()(pixels).last_hidden_state, expected)
        encoder = timm.create_model("hf-hub:org/x", pretrained=True).eval()
        assert torch.equal(encoder.forward_features(pixels), expected)
    assert AutoImageProcessor.from_pretrained("org/x")
    with pytest.raises(OSError, match="is not a local folder and is not a valid model identifier"):
        AutoConfig.from_pretrained("org/none")
    assert hub.unknown == []


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint"])
def test_the_trainer_pushes(hub, tmp_path, strategy):
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return {"pixel_values": torch.randn(3, 64, 64), "labels": index}

    args = TrainingArguments(
        tmp_path / "out",
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=1,
        push_to_hub=True,
        hub_model_id="org/x",
        hub_private_repo=True,
        hub_always_push=True,
        hub_strategy=strategy,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(A2MIMForImageClassification(family_config("vit", num_labels=2)), args, train_dataset=Rows())
    trainer.train()
    trainer.push_to_hub()
    pushed = ["Training in progress, step 1", "Training in progress, step 2"]
    if strategy == "checkpoint":
        pushed = [message for step in pushed for message in (step, f"{step}, checkpoint")]
        assert {"last-checkpoint/model.safetensors", "last-checkpoint/optimizer.pt"} < set(hub.files("org/x"))
    assert hub.commits("org/x") == ["initial commit", *pushed, "End of training"]
    assert {"config.json", "model.safetensors", "README.md", "training_args.bin"} < set(hub.files("org/x"))
    assert HfApi().model_info("org/x").private
    assert hub.unknown == []


@pytest.mark.parametrize("private", [False, True])
def test_datasets_are_streamed(hub, private):
    images = [png(i) for i in range(4)]
    rows = {"image": [Image.open(io.BytesIO(image)) for image in images], "label": list(range(4))}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features).to_parquet(file := io.BytesIO())
    hub.put("org/rows", {"data/train-0.parquet": file.getvalue()}, "dataset", private)
    hub.put("org/images", {f"train/{i}.png": image for i, image in enumerate(images)}, "dataset", private)
    for name in ("org/rows", "org/images"):
        streamed = list(datasets.load_dataset(name, split="train", streaming=True))
        assert [row["image"].getpixel((0, 0)) for row in streamed] == [(i, 2 * i, 3 * i) for i in range(4)]
    whole = datasets.load_dataset("org/rows", split="train")
    assert whole[3]["image"].getpixel((0, 0)) == (3, 6, 9)
    assert hub.unknown == []


def test_datasets_are_pushed(hub):
    datasets.Dataset.from_dict({"label": [1, 2]}).push_to_hub("org/rows", private=True)
    assert HfApi().dataset_info("org/rows").private
    assert datasets.load_dataset("org/rows", split="train")["label"] == [1, 2]
    assert hub.unknown == []


def test_it_fails_when_told(hub, monkeypatch):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    HfApi().create_repo("org/x")
    hub.fail_next(503, path_contains="preupload")
    HfApi().upload_file(path_or_fileobj=b"b", path_in_repo="b", repo_id="org/x")
    assert len(waits) == 1
    assert hub.received_paths("org/x") == ["b"]
    hub.fail_next(0, path_contains="preupload")
    HfApi().upload_file(path_or_fileobj=b"c", path_in_repo="b", repo_id="org/x")
    assert len(waits) == 2
    assert hub.files("org/x")["b"] == b"c"
    hub.fail_next(403, times=2, path_contains="/commit/")
    for _ in range(2):
        with pytest.raises(HfHubHTTPError, match="told to fail"):
            HfApi().upload_file(path_or_fileobj=b"d", path_in_repo="b", repo_id="org/x")
    assert [request.status for request in hub.requests if request.status != 200] == [503, 0, 403, 403]
    HfApi().upload_file(path_or_fileobj=b"d", path_in_repo="b", repo_id="org/x")
    assert hub.commits("org/x")[1:] == ["Upload b with huggingface_hub"] * 3


def test_secrets_are_found(hub):
    api = HfApi()
    api.create_repo("org/x")

    def send(content=b"", path="a", **kwargs):
        api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id="org/x", **kwargs)

    places = {
        "as text": send,
        "as weights": lambda secret: send(secret, "a.safetensors"),
        "as a/name": lambda secret: send(path=secret.decode()),
        'as "message"': lambda secret: send(commit_message=secret.decode()),
        "in a path": lambda secret: list(api.list_repo_tree("org/x", revision=secret.decode())),
        "in a form": lambda secret: api.get_paths_info("org/x", secret.decode()),
        "in a header": lambda secret: get_session().get(hub.endpoint, headers={b"X": secret}),
    }
    for place, call in places.items():
        secret = f"planted {place} é".encode()
        assert secret not in hub.received()
        with suppress(RevisionNotFoundError):
            call(secret)
        assert secret in hub.received(), place
    assert hub.requests[0].headers["Authorization"] == f"Bearer {hub.token}"
    assert hub.token.encode() not in hub.received()


def test_hostile_names_are_shown_as_they_are(hub, tmp_path):
    names = ["../../evil", "/tmp/evil", "a/../b", "fine.txt"]
    hub.put("org/x", dict.fromkeys(names, b"x"))
    assert [sibling.rfilename for sibling in HfApi().model_info("org/x").siblings] == names
    assert sorted(HfApi().list_repo_files("org/x")) == sorted(names)
    with pytest.raises(ValueError, match=r"evil|\.\."):
        snapshot_download("org/x", local_dir=tmp_path / "x")
    assert not (tmp_path.parent / "evil").exists()


def test_another_process_talks_to_it(hub, tmp_path):
    script = """
from huggingface_hub import HfApi, hf_hub_download
HfApi().create_repo("org/x", private=True)
HfApi().upload_file(path_or_fileobj=b"a", path_in_repo="a.png", repo_id="org/x")
print(hf_hub_download("org/x", "a.png"))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=hub.environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.stdout.startswith(str(tmp_path)), done.stderr
    assert hub.files("org/x")["a.png"] == b"a"
    assert hub.unknown == []


def test_without_it_there_is_no_network():
    with pytest.raises(OfflineModeIsEnabled):
        HfApi().model_info("org/x")


def test_hubs_do_not_know_each_other(module_hub, hub):
    module_hub.put("org/x", {"a.txt": b"a"})
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("org/x", "a.txt")
    assert module_hub.requests == []
