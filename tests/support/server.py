"""
A Hub on the loopback interface, for the real `huggingface_hub` client.

It keeps repositories in memory, speaks the part of the HTTP protocol that creating, committing, listing and downloading need, counts
what it is asked, and can drop a connection, refuse a commit or ignore ranges on request. The payloads are those of hf_facts.md §6.2.
"""

import base64
import hashlib
import json
import re
import socket
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


KINDS = "models|datasets|spaces"
TOKEN, USER = "hf_loopback", "me"
BLOCK = 2**20


@dataclass(frozen=True)
class Blob:
    """Content of one file: bytes, or a file on disk (which may be sparse and larger than memory)."""

    data: bytes | Path
    lfs: bool = False

    @cached_property
    def size(self) -> int:
        return len(self.data) if isinstance(self.data, bytes) else self.data.stat().st_size

    @cached_property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for start in range(0, self.size, BLOCK):
            digest.update(self.read(start, min(start + BLOCK, self.size)))
        return digest.hexdigest()

    @cached_property
    def oid(self) -> str:
        """The git object id of the file, or of its LFS pointer."""
        content = self.pointer if self.lfs else self.read(0, self.size)
        return hashlib.sha1(b"blob %d\x00" % len(content) + content).hexdigest()

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def read(self, begin: int, end: int) -> bytes:
        if isinstance(self.data, bytes):
            return self.data[begin:end]
        with self.data.open("rb") as file:
            file.seek(begin)
            return file.read(end - begin)

    def describe(self) -> dict[str, Any]:
        lfs = {"oid": self.sha256, "size": self.size, "pointerSize": len(self.pointer)}
        return {"size": self.size, "oid": self.oid} | ({"lfs": lfs} if self.lfs else {})


@dataclass(frozen=True)
class XetBlob(Blob):
    """A file whose content went into the Xet store; only the client can read it there."""

    xet_hash: str = ""

    @classmethod
    def of(cls, sha256: str, size: int, xet_hash: str) -> "XetBlob":
        blob = cls(b"", True, xet_hash)
        blob.__dict__.update(sha256=sha256, size=size)
        return blob


def xet_hashes(store: Path) -> dict[str, str]:
    """
    SHA-256 to Xet hash of every file in a local Xet store, from its shards: a file is a 48-byte header (hash, flags, number of segments),
    48 bytes per segment, as many per verification if bit 31 is set, and 48 bytes with the SHA-256 if bit 30 is set.
    """

    def text(raw: bytes) -> str:  # hashes are printed as four little-endian words
        return "".join(f"{int.from_bytes(raw[i : i + 8], 'little'):016x}" for i in range(0, 32, 8))

    found = {}
    for shard in store.rglob("*.mdb"):
        raw, place = shard.read_bytes(), 48
        while raw[place : place + 32] != b"\xff" * 32:
            flags, entries = (int.from_bytes(raw[place + i : place + i + 4], "little") for i in (32, 36))
            end = place + 48 * (1 + entries * (2 if flags >> 31 & 1 else 1))
            if flags >> 30 & 1:
                found[text(raw[end : end + 32])] = text(raw[place : place + 32])
                end += 48
            place = end
    return found


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    date: str
    author: str
    files: Mapping[str, Blob]


@dataclass
class Repo:
    """History of the one branch `main`, oldest commit first."""

    kind: str
    name: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: list[Commit] = field(default_factory=list)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def at(self, revision: str) -> Commit:
        if revision in ("main", "HEAD", "refs/heads/main"):
            return self.head
        for commit in self.commits:
            if len(revision) >= 7 and commit.oid.startswith(revision):
                return commit
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def commit(self, files: Mapping[str, Blob], title: str, author: str, now: datetime) -> Commit:
        seed = f"{self.name}{len(self.commits)}{title}{sorted((path, blob.oid) for path, blob in files.items())}"
        date = now.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        self.commits.append(Commit(hashlib.sha1(seed.encode()).hexdigest(), title, date, author, dict(files)))
        return self.head


class Refused(Exception):
    """Becomes an HTTP error that the client recognises by its `X-Error-Code`."""

    def __init__(self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None):
        self.status, self.headers = status, dict(headers or {})
        self.headers |= {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.message = message


@dataclass(frozen=True)
class Request:
    """One line of the log: what was asked, what was answered."""

    method: str
    path: str
    status: int
    received: int
    sent: int
    range: str | None
    authenticated: bool


@dataclass
class Answer:
    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


class HubServer:
    """
    Use as a context manager. `TOKEN` belongs to `USER`, who may write to `me/...`; other namespaces are for reading.

    Attributes:
        requests (`list[Request]`): Log since the last `forget()`.
        now (`datetime`): The date of the next commit; `None` for the clock.
        lfs_above (`int`): Files of this size and every `.safetensors` go through LFS; `None` sends everything as regular files.
        ranges (`bool`): Whether `Range` is honoured.
        cdn (`bool`): Whether an LFS download is redirected to an address that needs no token, as on the real Hub.
        xet (`Path`): Folder of a local Xet store; uploads go there without passing through this server.
        before_commit (`Callable`): Called once, before the next commit is applied: the place for a second publisher.
        verdict_on_yaml (`list[str]`): Errors that the metadata check answers with.
    """

    def __init__(self) -> None:
        self.users = {TOKEN: USER}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.now: datetime | None = None
        self.lfs_above: int | None = 10_000_000
        self.ranges, self.cdn = True, False
        self.xet: Path | None = None
        self.before_commit: Callable[[], None] | None = None
        self.verdict_on_yaml: list[str] = []
        self.lock = threading.RLock()
        self._arrived, self._drop, self._conflicts = 0, {}, 0
        self._truncate: set[int] = set()

    def __enter__(self) -> "HubServer":
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    # What tests set up and look at

    def add_repo(
        self,
        name: str,
        files: Mapping[str, bytes | str | Path] | None = None,
        kind: str = "models",
        private: bool = False,
        gated: bool = False,
    ) -> Repo:
        """A repository that somebody else filled; an existing one gets a commit with `files` added."""
        with self.lock:
            repo = self.repos.setdefault((kind, name), Repo(kind, name, private, gated))
            if not repo.commits:
                repo.commit({}, "initial commit", "system", self._clock())
            if files:
                blobs = {path: self._blob(path, content) for path, content in files.items()}
                repo.commit({**repo.head.files, **blobs}, "upload", name.split("/")[0], self._clock())
        return repo

    def add_folder(self, name: str, folder: Path, **fields: Any) -> Repo:
        """[`add_repo`] with all files of a folder; they stay on disk."""
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        return self.add_repo(name, files, **fields)

    def files(self, name: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        commit = self.repos[kind, name].at(revision)
        return {path: blob.read(0, blob.size) for path, blob in commit.files.items()}

    def forget(self) -> None:
        """Starts counting anew; pending drops and conflicts are forgotten too."""
        with self.lock:
            self.requests, self._arrived, self._drop, self._conflicts = [], 0, {}, 0
            self._truncate = set()

    def drop_at(self, number: int, after: bool = False) -> None:
        """
        Cuts the connection at the `number`-th request from the last `forget()` on, counted from 1: before it is handled, or (`after`) when it
        has taken effect but before the client hears of it.
        """
        self._drop[number] = after

    def truncate_at(self, number: int) -> None:
        """Cuts the connection in the middle of the body of the `number`-th answer."""
        self._truncate.add(number)

    def conflict(self, times: int = 1) -> None:
        """The next commits are answered with 412, as if somebody else had just pushed."""
        self._conflicts = times

    def count(self, method: str | None = None, part: str = "") -> int:
        return sum((method in (None, request.method)) and part in request.path for request in self.requests)

    @property
    def bytes_sent(self) -> int:
        return sum(request.sent for request in self.requests)

    # What the client asks

    def handle(self, method: str, path: str, query: dict, headers: Mapping[str, str], body: bytes) -> Answer:
        user = self.users.get(headers.get("Authorization", "").removeprefix("Bearer "))
        with self.lock:
            for pattern, verbs, action in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and method in verbs:
                    groups = {name: unquote(value or "") for name, value in match.groupdict().items()}
                    return action(self, user=user, query=query, headers=headers, body=body, **groups)
        raise Refused(404, None, f"{method} {path} is not spoken here")

    def _clock(self) -> datetime:
        return self.now or datetime.now(UTC)

    def _blob(self, path: str, content: bytes | str | Path) -> Blob:
        data = content.encode() if isinstance(content, str) else content
        size = data.stat().st_size if isinstance(data, Path) else len(data)
        return Blob(data, self._is_lfs(path, size))

    def _is_lfs(self, path: str, size: int) -> bool:
        return self.lfs_above is not None and (path.endswith(".safetensors") or size >= self.lfs_above)

    def _repo(self, kind: str, name: str, user: str | None, content: bool = False, write: bool = False) -> Repo:
        repo = self.repos.get((kind or "models", name))
        owns = user is not None and name.split("/")[0] == user
        if repo is None or (repo.private and not owns and user not in repo.granted):
            # A private repository looks as if it were not there.
            raise Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if content and repo.gated and not owns and user not in repo.granted:
            raise Refused(403 if user else 401, "GatedRepo", f"Access to model {name} is restricted.")
        if write and not owns:
            raise Refused(403 if user else 401, None, "You have no right to write to this repository")
        return repo

    def create(self, user: str | None, body: bytes, **_: Any) -> Answer:
        if user is None:
            raise Refused(401, None, "Invalid username or password.")
        asked = json.loads(body)
        kind = f"{asked.get('type') or 'model'}s"
        owner = asked.get("organization") or user
        name = f"{owner}/{asked['name']}"
        url = f"{self.url}/{name if kind == 'models' else f'{kind}/{name}'}"
        if owner != user:
            raise Refused(403, None, f"You don't have the rights to create a model under the namespace {owner!r}")
        if (kind, name) in self.repos:
            return Answer(409, {"error": "You already created this model repo", "url": url})
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.add_repo(name, kind=kind, private=private)
        return Answer(200, {"url": url, "name": name, "id": name})

    def validate_yaml(self, body: bytes, **_: Any) -> Answer:
        content = json.loads(body)["content"]
        errors = [{"message": text} for text in self.verdict_on_yaml]
        if content.startswith("---\n"):
            try:
                yaml.safe_load(content.split("---\n")[1])
            except yaml.YAMLError as error:
                errors.append({"message": str(error)})
        return Answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def whoami(self, user: str | None, **_: Any) -> Answer:
        if user is None:
            raise Refused(401, None, "Invalid username or password.")
        return Answer(200, {"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}})

    def info(self, user: str | None, kind: str, repo: str, revision: str, query: dict, **_: Any) -> Answer:
        found = self._repo(kind, repo, user)
        commit = found.at(revision or "main")
        siblings: list[dict[str, Any]] = []
        for path, blob in sorted(commit.files.items()):
            siblings.append({"rfilename": path})
            if "blobs" in query:
                lfs = {"sha256": blob.sha256, "size": blob.size, "pointerSize": len(blob.pointer)}
                siblings[-1] |= {"size": blob.size, "blobId": blob.oid} | ({"lfs": lfs} if blob.lfs else {})
        return Answer(200, {
            "id": repo, "sha": commit.oid, "author": repo.split("/")[0], "createdAt": found.commits[0].date,
            "lastModified": commit.date, "private": found.private, "gated": "manual" if found.gated else False,
            "disabled": False, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings,
        })  # fmt: skip

    def history(self, user: str | None, kind: str, repo: str, revision: str, **_: Any) -> Answer:
        found = self._repo(kind, repo, user)
        place = found.commits.index(found.at(revision))
        newest_first = reversed(found.commits[: place + 1])
        return Answer(200, [
            {"id": commit.oid, "title": commit.title, "message": "", "authors": [{"user": commit.author}], "date": commit.date}
            for commit in newest_first
        ])  # fmt: skip

    def tree(self, user: str | None, kind: str, repo: str, revision: str, sub: str, query: dict, **_: Any) -> Answer:
        commit = self._repo(kind, repo, user).at(revision)
        prefix, recursive = f"{sub}/" if sub else "", query.get("recursive") == "true"
        items, folders = [], set()
        for path, blob in sorted(commit.files.items()):
            if not path.startswith(prefix):
                continue
            folder, _, _ = path[len(prefix) :].rpartition("/")
            if folder and not recursive:
                folders.add(prefix + folder.split("/")[0])
            else:
                items.append({"type": "file", "path": path} | blob.describe())
        if prefix and not items and not folders:
            raise Refused(404, "EntryNotFound", f"{sub} does not exist")
        return Answer(
            200, [{"type": "directory", "path": f, "oid": "0" * 40, "size": 0} for f in sorted(folders)] + items
        )

    def paths_info(self, user: str | None, kind: str, repo: str, revision: str, body: bytes, **_: Any) -> Answer:
        commit = self._repo(kind, repo, user).at(revision)
        wanted = [path for path in parse_qs(body.decode()).get("paths", []) if path in commit.files]
        return Answer(200, [{"type": "file", "path": path} | commit.files[path].describe() for path in wanted])

    def preupload(self, user: str | None, kind: str, repo: str, revision: str, body: bytes, **_: Any) -> Answer:
        files, answers = self._repo(kind, repo, user, write=True).at(revision).files, []
        for asked in json.loads(body)["files"]:
            path = asked["path"]
            mode = "lfs" if self._is_lfs(path, asked["size"]) else "regular"
            oid = files[path].etag if path in files else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return Answer(200, {"files": answers})

    def lfs_batch(self, user: str | None, kind: str, repo: str, body: bytes, **_: Any) -> Answer:
        self._repo(kind, repo, user, write=True)
        objects = json.loads(body)["objects"]
        for item in objects:
            if item["oid"] not in self.uploads:
                upload = {"href": f"{self.url}/lfs/{item['oid']}", "header": {}}
                item["actions"] = {"upload": upload, "verify": {"href": f"{self.url}/lfs-verify"}}
        return Answer(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str, body: bytes, **_: Any) -> Answer:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, None, "the content has another SHA-256")
        self.uploads[oid] = body
        return Answer()

    def lfs_verify(self, body: bytes, **_: Any) -> Answer:
        asked = json.loads(body)
        if len(self.uploads.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, None, "no such object")
        return Answer(200, {})

    def xet_token(self, user: str | None, kind: str, repo: str, right: str, **_: Any) -> Answer:
        self._repo(kind, repo, user, write=right == "write")
        if self.xet is None:
            raise Refused(404, None, "no Xet store here")
        token = {"accessToken": "xet", "exp": 2**31 - 1, "casUrl": f"local://{self.xet}"}
        names = {"accessToken": "X-Xet-Access-Token", "exp": "X-Xet-Token-Expiration", "casUrl": "X-Xet-Cas-Url"}
        return Answer(200, token, {names[name]: str(value) for name, value in token.items()})

    def commit(self, user: str | None, kind: str, repo: str, revision: str, body: bytes, **_: Any) -> Answer:
        found = self._repo(kind, repo, user, write=True)
        hook, self.before_commit = self.before_commit, None
        if hook is not None:
            hook()
        lines = [json.loads(line) for line in body.splitlines() if line]
        header = lines[0]["value"]
        parent = header.get("parentCommit")
        if self._conflicts or (parent is not None and found.head != found.at(parent)):
            self._conflicts = max(0, self._conflicts - 1)
            raise Refused(412, None, "A commit has happened since. Please refresh and try again.")
        files = dict(found.at(revision).files)
        for line in lines[1:]:
            self._apply(files, line["key"], line["value"])
        oid = found.commit(files, header["summary"], str(user), self._clock()).oid
        url = f"{self.url}/{repo}/commit/{oid}"
        return Answer(200, {"success": True, "commitUrl": url, "commitOid": oid, "pullRequestUrl": None})

    def _apply(self, files: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            files[path] = Blob(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            stored = xet_hashes(self.xet) if self.xet else {}
            if value["oid"] in stored:
                files[path] = XetBlob.of(value["oid"], value["size"], stored[value["oid"]])
            elif value["oid"] in self.uploads:
                files[path] = Blob(self.uploads[value["oid"]], lfs=True)
            else:
                raise Refused(400, None, f"{path}: its content was never uploaded")
        elif key in ("deletedFile", "deletedFolder"):
            for name in [name for name in files if name == path or name.startswith(f"{path.rstrip('/')}/")]:
                del files[name]

    def resolve(
        self, user: str | None, kind: str, repo: str, revision: str, path: str, headers: Mapping[str, str], **_: Any
    ) -> Answer:
        found = self._repo(kind.rstrip("/"), repo, user, content=True)
        commit = found.at(revision)
        known = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            raise Refused(404, "EntryNotFound", "Entry not found", known)
        blob = commit.files[path]
        known |= {"ETag": f'"{blob.etag}"', "X-Linked-Size": str(blob.size), "X-Linked-Etag": f'"{blob.etag}"'}
        if isinstance(blob, XetBlob):
            link = f'<{self.url}/api/{kind or "models/"}{repo}/xet-read-token/{commit.oid}>; rel="xet-auth"'
            return Answer(200, None, known | {"X-Xet-Hash": blob.xet_hash, "Link": link})
        if self.cdn and blob.lfs:
            return Answer(
                302, None, known | {"Location": f"{self.url}/cdn/{kind or 'models/'}{repo}/{commit.oid}/{path}"}
            )
        return self._content(blob, headers, known)

    def download(self, kind: str, repo: str, revision: str, path: str, headers: Mapping[str, str], **_: Any) -> Answer:
        return self._content(self.repos[kind, repo].at(revision).files[path], headers, {})

    def _content(self, blob: Blob, headers: Mapping[str, str], extra: dict[str, str]) -> Answer:
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("Range") or "")
        extra = extra | {"Accept-Ranges": "bytes" if self.ranges else "none"}
        if not self.ranges or not asked:
            return Answer(200, (blob, 0, blob.size), extra)
        first, last = asked.groups()
        if first:
            begin, end = int(first), min(int(last) + 1 if last else blob.size, blob.size)
        else:
            begin, end = max(0, blob.size - int(last)), blob.size
        if begin >= blob.size:
            raise Refused(416, None, "range not satisfiable", {"Content-Range": f"bytes */{blob.size}"})
        return Answer(206, (blob, begin, end), extra | {"Content-Range": f"bytes {begin}-{end - 1}/{blob.size}"})


_API = rf"/api/(?P<kind>{KINDS})/(?P<repo>[^/]+/[^/]+)"
_PAGE = r"/(?P<kind>(?:datasets/|spaces/)?)(?P<repo>[^/]+/[^/]+?)"
ROUTES: list[tuple[str, tuple[str, ...], Callable[..., Answer]]] = [
    (r"/api/repos/create", ("POST",), HubServer.create),
    (r"/api/validate-yaml", ("POST",), HubServer.validate_yaml),
    (r"/api/whoami-v2", ("GET",), HubServer.whoami),
    (rf"{_API}(?:/revision/(?P<revision>[^/]+))?", ("GET",), HubServer.info),
    (rf"{_API}/commits/(?P<revision>[^/]+)", ("GET",), HubServer.history),
    (rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<sub>.+?))?/?", ("GET",), HubServer.tree),
    (rf"{_API}/paths-info/(?P<revision>[^/]+)", ("POST",), HubServer.paths_info),
    (rf"{_API}/preupload/(?P<revision>[^/]+)", ("POST",), HubServer.preupload),
    (rf"{_API}/xet-(?P<right>read|write)-token/[^/]+", ("GET",), HubServer.xet_token),
    (rf"{_API}/commit/(?P<revision>[^/]+)", ("POST",), HubServer.commit),
    (rf"{_PAGE}\.git/info/lfs/objects/batch", ("POST",), HubServer.lfs_batch),
    (r"/lfs/(?P<oid>[0-9a-f]{64})", ("PUT",), HubServer.lfs_put),
    (r"/lfs-verify", ("POST",), HubServer.lfs_verify),
    (rf"/cdn/(?P<kind>{KINDS})/(?P<repo>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<path>.+)", ("GET", "HEAD"), HubServer.download),
    (rf"{_PAGE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", ("GET", "HEAD"), HubServer.resolve),
]  # fmt: skip


def environment(url: str, home: Path) -> dict[str, str]:
    """The variables with which a fresh process talks to the server at `url`."""
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_hub: HubServer

    def _serve(self) -> None:
        hub, url = self.server_hub, urlsplit(self.path)
        body = self._body()
        with hub.lock:
            hub._arrived += 1
            drop = hub._drop.pop(hub._arrived, None)
            self.truncated = hub._arrived in hub._truncate
        if drop is False:
            return self._cut(len(body))
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        try:
            answer = hub.handle(self.command, url.path, query, self.headers, body)
        except Refused as refused:
            answer = Answer(refused.status, {"error": refused.message}, refused.headers)
        except Exception:
            answer = Answer(501, {"error": traceback.format_exc()}, {"X-Error-Message": "the test server failed"})
        if drop is True:
            return self._cut(len(body))
        self._send(answer, len(body))
        return None

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _cut(self, received: int) -> None:
        self._log(0, received, 0)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, answer: Answer, received: int) -> None:
        blob, begin, end = answer.body if isinstance(answer.body, tuple) else (None, 0, 0)
        if blob is None:
            content = b"" if answer.body is None else json.dumps(answer.body).encode()
            blob, end = Blob(content), len(content)
            answer.headers.setdefault("Content-Type", "application/json")
        sent = 0 if self.command == "HEAD" else (end - begin) // 2 if self.truncated else end - begin
        self._log(answer.status, received, sent)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        for start in range(begin, begin + sent, BLOCK):
            self.wfile.write(blob.read(start, min(start + BLOCK, begin + sent)))
        if self.truncated:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _log(self, status: int, received: int, sent: int) -> None:
        line = Request(
            self.command, self.path, status, received, sent, self.headers.get("Range"), "Authorization" in self.headers
        )
        with self.server_hub.lock:
            self.server_hub.requests.append(line)

    def log_message(self, format: str, *args: Any) -> None:
        pass
