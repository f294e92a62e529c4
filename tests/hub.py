"""A small Hub for tests: it answers over HTTP what huggingface_hub asks for, and keeps a record of all it received."""

import base64
import hashlib
import json
import os
import re
import secrets
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, unquote_plus, urlsplit

import pytest
import yaml


HUB = "https://huggingface.co"  # in answers: clients put in its place what they were told to use
OWNERS = ("tester", "org")  # the one user, and the organization the user is in
NAME, REVISION, PATH = r"(?P<name>[^/]+(?:/[^/]+)?)", r"(?P<revision>[^/]+)", r"(?P<path>.+)"
API, HOME = rf"/api/(?P<kind>models|datasets)/{NAME}", rf"/(?:(?P<kind>datasets)/)?{NAME}"
ROUTES = (
    "GET /api/(?P<action>whoami)-v2",
    "POST /api/(?P<action>validate)-yaml",
    "POST /api/repos/(?P<action>create)",
    rf"GET {API}(?:/(?P<action>revision|refs|tree)(?:/{REVISION}(?:/{PATH})?)?)?",
    rf"POST {API}/(?P<action>paths-info|branch|preupload|commit)/{REVISION}",
    rf"POST {HOME}\.git/info/lfs/objects/(?P<action>batch)",
    "GET /(?P<action>info)",
    "PUT /(?P<action>lfs)/(?P<path>[0-9a-f]{64})",
    rf"(GET|HEAD) {HOME}/(?P<action>resolve)/{REVISION}/{PATH}",
)


@dataclass
class Request:
    method: str
    path: str
    headers: Message
    body: bytes
    status: int = 0  # what it was answered; 0 if the connection was closed instead

    def content(self) -> bytes:
        """All that it says except for the token, also what is encoded: quoted, escaped in JSON or base64 in JSON."""
        heads = [f"{key}: {value}" for key, value in self.headers.items() if key.lower() != "authorization"]
        told = ["\n".join([*heads, self.path]).encode("latin-1"), unquote(self.path).encode(), self.body]
        if "urlencoded" in self.headers.get("Content-Type", ""):
            told.append(unquote_plus(self.body.decode()).encode())
        if "json" in self.headers.get("Content-Type", ""):
            for text in map(json.loads, re.findall(rb'"[^"\\]*(?:\\.[^"\\]*)*"', self.body)):
                told.append(text.encode())
                with suppress(ValueError):
                    told.append(base64.b64decode(text, validate=True))
        return b"\n".join(told)


@dataclass
class Commit:
    message: str
    files: dict[str, bytes]  # all files of the repository after it
    received: list[str]  # the paths it brought
    sha: str = field(default_factory=lambda: secrets.token_hex(20))


@dataclass
class Repository:
    name: str
    url: str
    private: bool
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, Commit] = field(default_factory=dict)

    def at(self, revision: str) -> Commit:
        known = {commit.sha: commit for commit in self.commits} | self.branches
        if revision not in known:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return known[revision]

    def add(self, branch: str, message: str, changes: dict[str, bytes | None]) -> str:
        """`None` deletes a file."""
        files = (self.at(branch).files if branch in self.branches else {}) | changes
        received = sorted(path for path, data in changes.items() if data is not None)
        commit = Commit(message, {path: data for path, data in files.items() if data is not None}, received)
        self.commits.append(commit)
        self.branches[branch] = commit
        return commit.sha


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "", **body):
        self.answer = status, {"X-Error-Message": message, "X-Error-Code": code}, {"error": message, **body}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_lfs(path: str, size: int) -> bool:
    binary = path.endswith((".safetensors", ".png", ".parquet", ".tar"))
    return size > 10_000_000 or (binary and size > 0)  # clients never send empty files to LFS


def listing(commit: Commit) -> dict[str, dict]:
    """Files, and the folders they are in, the way the Hub shows them."""
    names = [path.split("/") for path in commit.files]
    folders = {"/".join(parts[:depth]) for parts in names for depth in range(1, len(parts))} - {""}
    shown = {path: {"type": "directory", "path": path, "oid": git_oid(path.encode()), "size": 0} for path in folders}
    for path, data in commit.files.items():
        shown[path] = {"type": "file", "path": path, "oid": git_oid(data), "size": len(data)}
        if is_lfs(path, len(data)):
            shown[path]["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 100}
    return dict(sorted(shown.items()))


def read_card(text: str) -> tuple[dict, list[dict]]:
    """The metadata at the top of a README, and what is wrong with it."""
    block = re.match(r"\s*---[\r\n]+(.*?)[\r\n]+---(\r?\n|$)", text, re.DOTALL)
    try:
        card = yaml.safe_load(block[1]) if block else {}
    except yaml.YAMLError as error:
        return {}, [{"message": str(error)}]
    kinds = {"library_name": str, "pipeline_tag": str, "tags": list}
    if not isinstance(card, dict) or any(not isinstance(card.get(key, kind()), kind) for key, kind in kinds.items()):
        return {}, [{"message": f"the metadata must be a mapping, with {', '.join(kinds)} of the right type"}]
    return card, []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # the answer in one piece: a second one would wait for the acknowledgement of the first

    def handle(self):
        with suppress(ConnectionError):  # clients leave when they have seen enough
            super().handle()

    def log_message(self, *args):
        pass

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, headers, body = self.server.hub.answer(Request(self.command, self.path, self.headers, body))
        if not status:
            self.close_connection = True
            return
        body = body if isinstance(body, bytes) else json.dumps(body, default=str).encode()
        self.send_response(status)
        for key, value in (headers | {"Content-Length": len(body)}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET


class Hub:
    """What tests call has a plain name; what clients ask for is answered by the method `on_` and the action."""

    def __init__(self):
        self.token = f"hf_{secrets.token_hex(17)}"
        self.requests: list[Request] = []
        self.unknown: list[str] = []  # what was asked for that this Hub has never heard of
        self.failures: list[tuple[int, str]] = []
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS contents, by their sha256
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket.listen(64)  # clients connect from many threads at once
        self.server.hub = self
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def put(self, repo_id: str, files: dict[str, bytes], repo_type="model", private=False, message="put") -> str:
        """Put files of any names into a repository, which is made if need be; returns the commit."""
        with self.lock:
            self.objects |= {sha256(data): data for data in files.values()}
            return self.make(f"{repo_type}s", repo_id, private).add("main", message, files)

    def make(self, kind: str, name: str, private: bool) -> Repository:
        url = f"{HUB}/{name}" if kind == "models" else f"{HUB}/{kind}/{name}"
        return self.repositories.setdefault((kind, name), Repository(name, url, private))

    def files(self, repo_id: str, revision="main", repo_type="model") -> dict[str, bytes]:
        return self.repositories[f"{repo_type}s", repo_id].at(revision).files

    def commits(self, repo_id: str, repo_type="model") -> list[str]:
        """The messages of all commits in the order they came, whatever their branch."""
        return [commit.message for commit in self.repositories[f"{repo_type}s", repo_id].commits]

    def received_paths(self, repo_id: str, commit=-1, repo_type="model") -> list[str]:
        """The files that a commit, by its place in `commits`, brought or replaced."""
        return self.repositories[f"{repo_type}s", repo_id].commits[commit].received

    def received(self) -> bytes:
        """Everything anyone sent, except for tokens in the header that is there for them."""
        return b"\n".join(request.content() for request in self.requests)

    def fail_next(self, status: int, times=1, path_contains=""):
        """Answer the next requests with this status; with status 0, close the connection on them."""
        self.failures += [(status, path_contains)] * times

    def environment(self, home) -> dict[str, str]:
        """The environment in which another process talks to this Hub, and keeps its caches in `home`."""
        caches = {"HF_HOME": f"{home}", "HF_HUB_CACHE": f"{home}/hub", "HF_DATASETS_CACHE": f"{home}/datasets"}
        off = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_UPDATE_DOWNLOAD_COUNTS")
        switches = dict.fromkeys(off, "0") | dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"), "1")
        here = {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": self.token, "NO_PROXY": "127.0.0.1"}
        return {**os.environ, **caches, **switches, **here}

    def answer(self, request: Request) -> tuple:
        with self.lock:
            self.requests.append(request)
            try:
                answer = self.respond(request)
            except Refusal as refusal:
                answer = refusal.answer
            answer = answer if isinstance(answer, tuple) else (200, {}, answer)
            request.status = answer[0]
            return answer

    def respond(self, request: Request):
        for failure in self.failures:
            if failure[1] in unquote(request.path):
                self.failures.remove(failure)
                raise Refusal(failure[0], "told to fail")
        if request.headers.get("Authorization") not in (None, f"Bearer {self.token}"):
            raise Refusal(401, "Invalid credentials in Authorization header")
        for route in ROUTES:
            if match := re.fullmatch(route, f"{request.method} {urlsplit(request.path).path}"):
                found = {key: unquote(value) for key, value in match.groupdict().items() if value}
                answer = getattr(self, "on_" + found.get("action", "revision").replace("-", "_"))
                repository = self.look_up(request, **found) if "name" in found else None
                return answer(request, repository, found.get("revision", "main"), found.get("path", ""))
        self.unknown.append(f"{request.method} {request.path}")
        raise Refusal(404, "this Hub has no such page")

    def look_up(self, request: Request, name: str, kind="models", action="", **_) -> Repository:
        write = action in ("branch", "preupload", "commit", "batch")
        repository = self.repositories.get((kind, name))
        if "Authorization" not in request.headers and (write or repository is None or repository.private):
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        if repository is None:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if write and name.split("/", maxsplit=1)[0] not in OWNERS:
            raise Refusal(403, "You may not write to this repository")
        return repository

    def on_whoami(self, request, *_):
        if "Authorization" not in request.headers:
            raise Refusal(401, "Invalid username or password.")
        access = {"type": "access_token", "accessToken": {"displayName": "tests", "role": "write"}}
        return {"type": "user", "name": OWNERS[0], "orgs": [{"type": "org", "name": OWNERS[1]}], "auth": access}

    def on_validate(self, request, *_):
        card, errors = read_card(json.loads(request.body)["content"])
        warnings = [] if card or errors else [{"message": "empty or missing yaml metadata in repo card"}]
        return 400 if errors else 200, {}, {"errors": errors, "warnings": warnings}

    def on_create(self, request, *_):
        asked = json.loads(request.body)
        kind, owner = f"{asked.get('type') or 'model'}s", asked.get("organization") or OWNERS[0]
        if "Authorization" not in request.headers or owner not in OWNERS:
            raise Refusal(403 if "Authorization" in request.headers else 401, f"You may not create under {owner}")
        private = asked.get("visibility") == "private" or asked.get("private") is True
        repository = self.make(kind, f"{owner}/{asked['name']}", private)
        if repository.commits:
            raise Refusal(409, f"You already created this {kind[:-1]} repo", url=repository.url)
        repository.add("main", "initial commit", {".gitattributes": b"*.png filter=lfs diff=lfs merge=lfs -text\n"})
        return {"url": repository.url, "name": repository.name}

    def on_revision(self, request, repository, revision, path):
        commit = repository.at(revision)
        card, _ = read_card(commit.files.get("README.md", b"").decode(errors="replace"))
        shown = {key: card[key] for key in ("library_name", "pipeline_tag") if key in card}
        shown |= {"id": repository.name, "sha": commit.sha, "private": repository.private, "cardData": card}
        return shown | {"tags": card.get("tags", []), "siblings": [{"rfilename": path} for path in commit.files]}

    def on_refs(self, request, repository, revision, path):
        heads = {name: commit.sha for name, commit in repository.branches.items() if not name.startswith("refs/")}
        shown = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in heads.items()]
        return {"branches": shown, "converts": [], "tags": [], "pullRequests": []}

    def on_tree(self, request, repository, revision, path):
        top, recursive = f"{path}/" if path else "", "recursive=true" in request.path.lower()
        inside = {name: shown for name, shown in listing(repository.at(revision)).items() if name.startswith(top)}
        if path and not inside:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        return [shown for name, shown in inside.items() if recursive or "/" not in name.removeprefix(top)]

    def on_paths_info(self, request, repository, revision, path):
        asked = parse_qs(request.body.decode()).get("paths", [])
        return [shown for name, shown in listing(repository.at(revision)).items() if name in asked]

    def on_branch(self, request, repository, revision, path):
        if revision in repository.branches:
            raise Refusal(409, f"Reference already exists: refs/heads/{revision}")
        repository.branches[revision] = repository.at(json.loads(request.body).get("startingPoint", "main"))
        return {}

    def on_preupload(self, request, repository, revision, path):
        old, asked = repository.at(revision).files, json.loads(request.body)["files"]
        oids = {path: (sha256 if is_lfs(path, len(data)) else git_oid)(data) for path, data in old.items()}
        modes = {file["path"]: "lfs" if is_lfs(file["path"], file["size"]) else "regular" for file in asked}
        told = [{"path": path, "uploadMode": mode, "oid": oids.get(path)} for path, mode in modes.items()]
        return {"files": [{**file, "shouldIgnore": False} for file in told]}

    def on_batch(self, request, repository, revision, path):
        objects = [{"oid": item["oid"], "size": item["size"]} for item in json.loads(request.body)["objects"]]
        for item in objects:
            if item["oid"] not in self.objects:
                item["actions"] = {"upload": {"href": f"{HUB}/lfs/{item['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def on_info(self, *_):
        raise Refusal(404, "the dataset viewer is another server, which has not seen this dataset yet")

    def on_lfs(self, request, repository, revision, path):
        if sha256(request.body) != path:
            raise Refusal(400, "the content is not what was announced")
        self.objects[path] = request.body
        return {}

    def on_commit(self, request, repository, revision, path):
        if revision not in repository.branches:
            raise Refusal(404, f"{revision} is not a branch", "RevisionNotFound")
        number = 1 + sum(branch.startswith("refs/pr/") for branch in repository.branches)
        if "create_pr=1" in request.path:
            revision, repository.branches[f"refs/pr/{number}"] = f"refs/pr/{number}", repository.branches[revision]
        message, files, changes = "", repository.at(revision).files, {}
        for item in map(json.loads, request.body.splitlines()):
            key, value = item["key"], item["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile" and value["oid"] in self.objects:
                changes[value["path"]] = self.objects[value["oid"]]
            elif key == "deletedFile" and value["path"] in files:
                changes[value["path"]] = None
            elif key == "deletedFolder":
                changes |= {path: None for path in files if path.startswith(value["path"].rstrip("/") + "/")}
            else:
                raise Refusal(400, f"cannot commit {key}: {value['path']}")
        sha = repository.add(revision, message, changes)
        urls = {
            "commitUrl": f"{repository.url}/commit/{sha}",
            "pullRequestUrl": f"{repository.url}/discussions/{number}",
        }
        return {"success": True, "commitOid": sha, **urls}

    def on_resolve(self, request, repository, revision, path):
        commit = repository.at(revision)
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            return 404, headers | {"X-Error-Code": "EntryNotFound"}, {"error": "Entry not found"}
        data = commit.files[path]
        headers["ETag"] = f'"{git_oid(data)}"'
        if is_lfs(path, len(data)):
            headers |= {"X-Linked-ETag": f'"{sha256(data)}"', "X-Linked-Size": len(data)}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if asked is None:
            return 200, headers, data
        part = data[int(asked[1]) : int(asked[2] or len(data)) + 1]
        span = f"bytes {asked[1]}-{int(asked[1]) + len(part) - 1}/{len(data)}"
        return (206 if part else 416), headers | {"Content-Range": span if part else f"bytes */{len(data)}"}, part


def connected(tmp_path_factory, patch):
    """A Hub that huggingface_hub, transformers and datasets of this process talk to, with empty caches."""
    # Not at the top: conftest.py sets what they read when they are imported.
    import datasets
    from huggingface_hub import HfFileSystem, close_session, constants
    from huggingface_hub.utils import _http

    httpx = getattr(_http, "httpx2", None) or _http.httpx
    hub, home = Hub(), tmp_path_factory.mktemp("home")

    class ToThisHub(httpx.HTTPTransport):
        """Whatever its address, a request ends here: huggingface_hub 1.33 writes some out, whatever HF_ENDPOINT is."""

        def handle_request(self, request):
            url = request.url.copy_with(scheme="http", host="127.0.0.1", port=hub.server.server_port)
            kept = {"headers": request.headers, "stream": request.stream, "extensions": request.extensions}
            return super().handle_request(httpx.Request(request.method, url, **kept))

    def client():
        hooks = {"request": [_http.hf_request_event_hook]}
        return httpx.Client(transport=ToThisHub(), event_hooks=hooks, follow_redirects=True, timeout=None)

    threading.Thread(target=hub.server.serve_forever, args=(0.02,), daemon=True).start()
    patch.setenv("HF_TOKEN", hub.token)
    patch.setattr(_http, "_GLOBAL_CLIENT_FACTORY", client)
    patch.setattr(constants, "HF_HUB_CACHE", f"{home}/hub")
    patch.setattr(constants, "HF_TOKEN_PATH", f"{home}/token")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    patch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", f"{home}/datasets")
    patch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", f"{home}/datasets/downloads")
    close_session()
    HfFileSystem.clear_instance_cache()
    yield hub
    close_session()
    HfFileSystem.clear_instance_cache()
    hub.server.shutdown()
    hub.server.server_close()


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
    # With the patches of the test itself, or what is undone first would be put back by what is undone last.
    yield from connected(tmp_path_factory, monkeypatch)


@pytest.fixture(scope="module")
def module_hub(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield from connected(tmp_path_factory, patch)
