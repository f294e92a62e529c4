"""Upload an exported folder, or a checkpoint of a run, which is exported first, to the Hub.

python -m modeling_a2mim.export FOLDER org/name [--private] [--revision BRANCH] [--dry_run]
"""

import argparse
import json
import tempfile
from pathlib import Path

from huggingface_hub import get_token

from ..configuration_a2mim import A2MIMConfig
from ..modeling_a2mim import A2MIMForPreTraining, A2MIMModel
from ..models.classifier import A2MIMForImageClassification
from ..pretrained import find_file
from .filenames import SHOWING_DATA
from .folder import export_model
from .hub import push_folder


SHOWS = " *"  # behind the name of a picture of images of the data, in a list of files


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="python -m modeling_a2mim.export", description="Upload an exported folder, or a checkpoint, to the Hub."
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
    args = vars(parser.parse_args(argv))
    folder, dry_run = args.pop("folder"), args["dry_run"]
    metadata = {name: value for name in ("license", "base_model") if (value := args.pop(name)) is not None}
    try:
        with tempfile.TemporaryDirectory() as scratch:
            exported = _exported(folder, Path(scratch) / "export")
            done = push_folder(exported, metadata=metadata, pictures_of_data=not args.pop("no_pictures"), **args)
            if dry_run:
                sizes = [(name, (exported / name).stat().st_size) for name in done]
                lines = [f"{size:>15,} {name}{SHOWS if name in SHOWING_DATA else ''}" for name, size in sizes]
                lines.append(f"{sum(size for _, size in sizes):>15,} bytes would go to {args['repo_id']}")
                if any(name in SHOWING_DATA for name in done):
                    lines.append("* shows images of the data: --no_pictures leaves it out")
                print("\n".join(lines))
            else:
                print(done.pr_url or done.commit_url)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    except Exception as error:  # of the network: the kinds differ between releases of huggingface_hub
        hint = "" if get_token() else " (there is no token: log in with `hf auth login`)"
        parser.exit(2, f"error: {args['repo_id']}: {type(error).__name__}: {error}{hint}\n")


def _exported(folder: str, scratch: Path) -> Path:
    """`folder` itself if it is an export; a checkpoint of ours is exported to `scratch`."""
    config = find_file(folder, "config.json") if Path(folder).is_dir() else None
    data = {} if config is None else json.loads(config.read_text())
    if data.get("model_type") != A2MIMConfig.model_type:
        return Path(folder)
    known = {c.__name__: c for c in (A2MIMForPreTraining, A2MIMForImageClassification, A2MIMModel)}
    model_class = next((known[name] for name in data.get("architectures") or () if name in known), A2MIMModel)
    return export_model(model_class.from_pretrained(folder).eval(), scratch)


if __name__ == "__main__":
    main()
