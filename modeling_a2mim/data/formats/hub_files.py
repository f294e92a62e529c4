"""What files a dataset on the Hub has."""

import httpx
from huggingface_hub import HfApi

from .census import Census


def hub_census(name: str, revision: str | None = None, token: str | None = None) -> tuple[str, Census] | None:
    """The root of a repository and what it holds; `None` if its card says which files are the data, or if the Hub
    cannot be asked (then `datasets` says what it has of it)."""
    try:
        info = HfApi(token=token).dataset_info(name, revision=revision)
    except (OSError, ValueError, httpx.HTTPError):
        return None
    card = info.card_data.to_dict() if info.card_data else {}
    if card.get("configs") or card.get("dataset_info"):
        return None
    root = f"hf://datasets/{name}@{info.sha}"
    names = [sibling.rfilename for sibling in info.siblings or ()]
    shown = [n for n in names if not any(part.startswith((".", "__")) for part in n.split("/"))]
    return root, Census.of(f"{root}/{name}" for name in shown)
