"""Files of a folder or of a repository of the Hub."""

import logging
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import _CACHED_NO_EXIST, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


logger = logging.getLogger("a2mim")

HUB_KWARGS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


def find_file(
    source: str, name: str, repo_type: str | None = None, argument: str = "model_name_or_path", **hub_kwargs: Any
) -> Path | None:
    """A file of a folder or Hub repository, `None` if it has no such file. A repository that cannot be asked is
    another matter than one that has no such file.

    Args:
        source: the folder, or the id of the repository.
        name: of the file, with `/` between folders.
        repo_type: "dataset", or `None` for a model.
        argument: that errors name.
        hub_kwargs: of `hf_hub_download`: `revision`, `token`, `cache_dir`, ...

    Raises:
        ValueError: naming the argument, if there is no such repository or revision, or it could not be asked.
    """
    if Path(source).is_dir():
        path = Path(source, name)
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(source, name, repo_type=repo_type, **hub_kwargs))
    except LocalEntryNotFoundError as error:
        return _cached(source, name, repo_type, argument, hub_kwargs, error.__cause__ or error)
    except EntryNotFoundError:
        return None
    except GatedRepoError as error:
        raise ValueError(
            f"{argument}: {source} is a repository whose terms must be accepted on its page, and then read with "
            "--hub_token or after `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{argument}: {source} cannot be read: it is no folder here, and the Hub has no repository of that name, "
            "or none that may be read without (another) --hub_token"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{argument}: {source} has no revision {hub_kwargs.get('revision')!r} on the Hub") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(f"{argument}: {source} cannot be read: {error}") from error
    except HTTPError as error:  # of the connection
        return _cached(source, name, repo_type, argument, hub_kwargs, error)


def _cached(
    source: str, name: str, repo_type: str | None, argument: str, hub_kwargs: dict[str, Any], error: BaseException
) -> Path | None:
    """What is known of a file of a Hub that does not answer: the file, or `None` if it was not there when the Hub was
    last asked."""
    where = {key: hub_kwargs.get(key) for key in ("cache_dir", "revision")}
    cached = try_to_load_from_cache(source, name, repo_type=repo_type, **where)
    if cached is _CACHED_NO_EXIST:
        return None
    if cached is not None:
        return Path(cached)
    offline = constants.is_offline_mode() or hub_kwargs.get("local_files_only")
    first = next(iter(str(error).strip().splitlines()), "")
    raise ValueError(
        f"{argument}: {source} is no folder here, and the Hub could not be asked for {name} of a repository of that "
        "name, which is not in the cache either: "
        + ("this process is offline (HF_HUB_OFFLINE)" if offline else f"{type(error).__name__}: {first}")
    ) from error


def find_optional_file(source: str, name: str, without: str, **hub_kwargs: Any) -> Path | None:
    """`find_file`, where a repository of the cache does with less: if the Hub cannot be asked for the file, that is a
    warning which says what happens `without` it."""
    try:
        return find_file(source, name, **hub_kwargs)
    except ValueError as error:
        if find_file(source, "config.json", **hub_kwargs) is None:
            raise
        logger.warning("%s; %s", str(error).removeprefix("model_name_or_path: "), without)
        return None


def folder_or_id(name: str) -> str:
    """`name`, if it is a folder that exists or may be a repository on the Hub.

    Raises:
        ValueError: if it can only be a folder and is not there, or is a name of timm.
    """
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()):
        raise ValueError(f"model_name_or_path: there is no folder {name}")
    if not Path(name).is_dir() and timm.is_model(name):
        raise ValueError(
            f"model_name_or_path: {name} is a name of timm, whose weights are loaded by --architecture {name} "
            "--pretrained"
        )
    return name
