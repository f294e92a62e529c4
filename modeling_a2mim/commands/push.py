"""`a2mim push FOLDER org/name`: upload an exported folder, or a checkpoint, which is exported first, to the Hub."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from ..utils.command import run_command


SHOWS = " *"  # behind the name of a figure with images of the data, in a list of files


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        prog="a2mim push", description="Upload an exported folder, or a checkpoint, to the Hub."
    )
    parser.add_argument("folder", help="the output folder of a script, or one of its checkpoints")
    parser.add_argument("repo_id", help="org/name, or name for your own account; made if missing")
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument("--private", action="store_true", default=None, help="make a private repository")
    visibility.add_argument("--public", dest="private", action="store_false", help="make a public repository")
    parser.add_argument("--revision", help="branch, made if missing (default: main)")
    parser.add_argument("--commit_message", default="Upload model")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request")
    parser.add_argument("--license", help="of the weights, such as apache-2.0, for the model card")
    parser.add_argument("--base_model", help="what a classifier was fine-tuned from on the Hub, for the model card")
    parser.add_argument("--no_pictures", action="store_true", help="leave out pictures that show images of the data")
    parser.add_argument("--dry_run", action="store_true", help="list the files and stop")
    return parser


def main(argv: list[str] | None = None):
    """The command: upload a folder to the Hub, or list what would be uploaded."""
    run_command(build_parser(), push, argv)


def push(args: argparse.Namespace):
    """What the command does with its arguments. Raises ValueError, also of what the Hub or the network refuses."""
    from huggingface_hub import get_token

    from ..export.hub import push_folder

    metadata = {name: getattr(args, name) for name in ("license", "base_model") if getattr(args, name) is not None}
    options = {name: getattr(args, name) for name in ("private", "revision", "commit_message", "create_pr", "dry_run")}
    with tempfile.TemporaryDirectory() as temporary:
        try:
            folder = _exported(args.folder, Path(temporary) / "export")
            pictures = not args.no_pictures
            done: Any = push_folder(folder, args.repo_id, metadata=metadata, pictures_of_data=pictures, **options)
        except ValueError:
            raise
        except Exception as error:  # of the network: the kinds differ between releases of huggingface_hub
            hint = "" if get_token() else " (there is no token: log in with `hf auth login`)"
            raise ValueError(f"{args.repo_id}: {type(error).__name__}: {error}{hint}") from error
        print(_listing(folder, done, args.repo_id) if args.dry_run else done.pr_url or done.commit_url)


def _listing(folder: Path, files: list[str], repo_id: str) -> str:
    """What would be uploaded: sizes and names, and which files show images of the data."""
    from ..export.filenames import SHOWING_DATA

    sizes = [(name, (folder / name).stat().st_size) for name in files]
    lines = [f"{size:>15,} {name}{SHOWS if name in SHOWING_DATA else ''}" for name, size in sizes]
    lines.append(f"{sum(size for _, size in sizes):>15,} bytes would go to {repo_id}")
    if any(name in SHOWING_DATA for name in files):
        lines.append("* shows images of the data: --no_pictures leaves it out")
    return "\n".join(lines)


def _exported(folder: str, target: Path) -> Path:
    """`folder` itself if it is an export; a checkpoint of ours is exported to `target`."""
    from ..configuration_a2mim import A2MIMConfig
    from ..export.folder import export_model
    from ..modeling_a2mim import A2MIMForPreTraining, A2MIMModel
    from ..models.classifier import A2MIMForImageClassification
    from ..models.linear_probe import LinearProbe
    from ..pretrained import find_file

    config = find_file(folder, "config.json") if Path(folder).is_dir() else None
    data = {} if config is None else json.loads(config.read_text())
    if data.get("model_type") != A2MIMConfig.model_type:
        return Path(folder)
    known: Any = {c.__name__: c for c in (A2MIMForPreTraining, A2MIMForImageClassification, A2MIMModel, LinearProbe)}
    name = (data.get("architectures") or [A2MIMModel.__name__])[0]
    if name not in known:
        raise ValueError(f"folder: {folder} holds {name}; expected an export, or {', '.join(known)}")
    model = known[name].from_pretrained(folder).eval()
    return export_model(model.to_classifier() if name == LinearProbe.__name__ else model, target)


if __name__ == "__main__":
    main()
