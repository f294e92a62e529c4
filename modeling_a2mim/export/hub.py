"""What goes to the Hub: an exact list of files, looked at before they leave, in one commit.

Anything else in the folder stays: checkpoints, optimiser states, logs, figures of training, whatever a user put
there.
"""

import json
import logging
import os
import re
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import yaml
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    get_token,
    parse_eval_result_entries,
)
from safetensors import SafetensorError, safe_open

from .filenames import (
    EXAMPLE,
    NEEDED,
    PICTURE,
    PICTURES,
    PLACEHOLDER,
    PROCESSOR,
    RECORD_FILE,
    SHOWING_DATA,
)


logger = logging.getLogger("a2mim")

UPLOADED = re.compile(
    "|".join(
        [
            *(re.escape(name) for name in (*NEEDED, *PICTURES, RECORD_FILE, PROCESSOR)),
            r"pretraining/(config\.json|model\.safetensors|model\.safetensors\.index\.json)",
            r"pretraining/model-\d{5}-of-\d{5}\.safetensors",
            r"\.eval_results/[A-Za-z0-9][\w.-]*\.yaml",
        ]
    ),
    re.ASCII,
)
TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{16,}")
PNG = b"\x89PNG\r\n\x1a\n"


def uploaded_files(folder: str | os.PathLike, pictures_of_data: bool = True) -> list[str]:
    """The files of an exported folder that belong on the Hub, relative to it with forward slashes, sorted.

    Args:
        folder: what `export.export_model` or a script wrote.
        pictures_of_data: whether figures with images of the data (`SHOWING_DATA`) are among them.

    Raises:
        ValueError: if the folder is no export, or one of the files is a link.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    found = []
    for place in (folder, folder / "pretraining", folder / ".eval_results"):
        for path in place.iterdir() if place.is_dir() else ():
            name = path.relative_to(folder).as_posix()
            if not UPLOADED.fullmatch(name) or (name in SHOWING_DATA and not pictures_of_data):
                continue
            if path.is_symlink() or place.is_symlink():
                raise ValueError(f"{name}: a link is not uploaded; put the file itself there")
            if path.is_file():
                found.append(name)
    if missing := [name for name in NEEDED if name not in found]:
        raise ValueError(f"{folder}: no exported model, {' and '.join(missing)} missing; see export.export_model")
    return sorted(found)


def check_files(folder: str | os.PathLike, names: Sequence[str], secrets: Sequence[str | None] = ()):
    """Look at what is about to leave.

    Args:
        folder: where the files are.
        names: which ones.
        secrets: what must not occur in them; the Hub tokens of this machine are always looked for.

    Raises:
        ValueError: naming a file that is not what its name says, holds a token, or names a path of this machine.
    """
    folder = Path(folder)
    tokens = {secret.encode() for secret in (*secrets, get_token(), os.environ.get("HF_TOKEN")) if secret}
    places = {f"{path}/" for path in (Path.home(), folder.resolve(), Path.cwd()) if len(path.parts) > 1}
    local = re.compile(rf"(?<![\w./:-])({'|'.join(map(re.escape, sorted(places)))})".encode())  # not within a URL
    for name in names:
        path = folder / name
        if name.endswith(".safetensors"):
            try:
                with safe_open(path, "pt") as file:
                    content = json.dumps(file.metadata() or {}).encode() + " ".join(file.keys()).encode()
            except SafetensorError as error:
                raise ValueError(f"{name}: no safetensors file: {error}") from error
        else:
            content = path.read_bytes()
            _check_format(name, content)
        if TOKEN.search(content) or any(token in content for token in tokens):
            raise ValueError(f"{name}: holds what looks like an access token; it is not uploaded")
        if found := local.search(content):
            raise ValueError(f"{name}: names a path of this machine, {found[1].decode()}...; it is not uploaded")


def _check_format(name: str, content: bytes):
    try:
        if name.endswith(".json"):
            if not isinstance(json.loads(content), dict):
                raise ValueError("expected a JSON object")
        elif name.endswith(".yaml"):
            parse_eval_result_entries(yaml.safe_load(content))
        elif name.endswith(".md"):
            ModelCard(content.decode())
        elif not content.startswith(PNG):
            raise ValueError("expected a PNG picture")
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{name}: cannot be read: {error}") from error


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload model",
    token: str | None = None,
    create_pr: bool = False,
    pictures_of_data: bool = True,
    metadata: dict | None = None,
    dry_run: bool = False,
    blocking: bool = True,
) -> list[str] | CommitInfo | Future:
    """Upload an exported folder to a model repository of the Hub, made if missing, in one commit.

    Args:
        folder: what `export.export_model` or a script wrote.
        repo_id: `org/name`, or `name` for the account of the token.
        private: whether a repository that is made is private; one that exists is left as it is.
        revision: a branch, made if missing; default main.
        commit_message: the title of the commit.
        token: default: the one of `hf auth login` or of the environment.
        create_pr: open a pull request instead of writing to the branch.
        pictures_of_data: whether the figures that show images of the data (`SHOWING_DATA`) go too.
        metadata: entries of the card to set, such as `license` and `base_model`.
        dry_run: upload nothing, and need no network.
        blocking: wait for the upload.

    Returns:
        The files with `dry_run`, else what `HfApi.create_commit` gives, as a future if not `blocking`. Files of an
        earlier export that this one no longer has are deleted; other files of the repository are left alone.

    Raises:
        ValueError: naming the file that may not be uploaded (see `uploaded_files` and `check_files`); nothing is then
            created or sent.
    """
    files = uploaded_files(folder, pictures_of_data)
    check_files(folder, files, [token])
    api = HfApi(token=token)
    if dry_run:
        return files

    def push() -> CommitInfo:
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision not in (None, "main") and not create_pr:
            api.create_branch(name, branch=revision, exist_ok=True)
        card = _card(Path(folder), name, files, metadata or {})
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(f, card if f == "README.md" else str(Path(folder, f))) for f in files
        ]
        there = api.list_repo_files(name, revision=None if create_pr else revision)
        operations += [CommitOperationDelete(f) for f in there if UPLOADED.fullmatch(f) and f not in files]
        logger.info("uploading %d files to %s", len(files), name)
        if shown := [file for file in files if file in SHOWING_DATA]:
            named = f" ({PICTURE} with the names of their files)" if PICTURE in shown else ""
            logger.info("showing images of the data: %s%s", ", ".join(shown), named)
        return api.create_commit(
            name, operations, commit_message=commit_message, revision=revision, create_pr=create_pr
        )

    return push() if blocking else api.run_as_future(push)


def _card(folder: Path, repo_id: str, files: list[str], metadata: dict) -> bytes:
    """The README with the repository's name in its examples, and without figures that are not there."""
    text = (folder / "README.md").read_text(encoding="utf-8").replace(PLACEHOLDER, repo_id)
    for name in PICTURES:
        if name not in files:
            text = re.sub(rf"^!\[[^\]]*\]\({re.escape(name)}\)\n\n(\*[^\n]*\*\n\n)?", "", text, flags=re.MULTILINE)
    card = ModelCard(text)
    for name, value in metadata.items():
        setattr(card.data, name, value)
    if EXAMPLE not in files and any(EXAMPLE in entry.get("src", "") for entry in card.data.get("widget", [])):
        card.data.pop("widget")
    return str(card).encode()
