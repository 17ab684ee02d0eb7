"""
A Hub of thousands of repositories that nobody wrote: headers are those of real architectures, and weights are numbers that follow from a seed, made when
their bytes are asked for. Marked models lie among them as files.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from server import Answer, Blob, Commit, HubServer, Refused, Repo


BLOCK = 2**16
WIDTHS = {"F32": 4, "F16": 2}
DAY = datetime(2026, 11, 1, tzinfo=UTC)
Shapes = Mapping[str, tuple[int, ...]]


@cache
def shapes_of(architecture: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an architecture of timm; no weight is made."""
    import timm
    import torch

    with torch.device("meta"):
        model = timm.create_model(architecture, num_classes=10)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def header_of(shapes: Shapes, dtype: str = "F32") -> bytes:
    """The start of a safetensors file, up to its numbers."""
    place, entries = 0, {}
    for name, shape in shapes.items():
        size = math.prod(shape) * WIDTHS[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    raw = json.dumps({"__metadata__": {"format": "pt"}} | entries).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


class GeneratedBlob(Blob):
    """A file of which only the header exists: normal numbers of deviation 0.02 behind it, the same whenever they are read."""

    @classmethod
    def of(cls, header: bytes, numbers: int, seed: int, dtype: str = "F32") -> "GeneratedBlob":
        blob = cls(header, True)
        named = hashlib.sha256(header + f"{seed}".encode()).hexdigest()
        blob.__dict__.update(size=len(header) + numbers * WIDTHS[dtype], sha256=named, seed=seed, dtype=dtype)
        return blob

    def read(self, begin: int, end: int) -> bytes:
        header: Any = self.data
        parts = [header[begin:end]]
        first, last = max(0, begin - len(header)), end - len(header)
        if last > first:
            blocks = b"".join(self._block(number) for number in range(first // BLOCK, (last - 1) // BLOCK + 1))
            start = first - first // BLOCK * BLOCK
            parts.append(blocks[start : start + last - first])
        return b"".join(parts)

    def _block(self, number: int) -> bytes:
        said = self.__dict__
        width = WIDTHS[said["dtype"]]
        generator = np.random.Generator(np.random.Philox(key=said["seed"], counter=[0, 0, number, 0]))
        values = generator.standard_normal(BLOCK // width, dtype=np.float32) * np.float32(0.02)
        return values.astype({4: "<f4", 2: "<f2"}[width]).tobytes()


@dataclass
class GeneratedRepo(Repo):
    """A repository with one commit that is made when it is asked for."""

    number: int = 0
    architecture: str = ""
    dtype: str = "F32"
    shards: int = 1

    @cached_property
    def commits(self) -> list[Commit]:  # type: ignore[override]
        shapes = shapes_of(self.architecture)
        names = list(shapes)
        files: dict[str, Blob] = {"config.json": Blob(json.dumps({"architecture": self.architecture}).encode())}
        size = -(-len(names) // self.shards)
        weight_map = {}
        for shard in range(self.shards):
            own = {name: shapes[name] for name in names[shard * size : (shard + 1) * size]}
            file = (
                "model.safetensors" if self.shards == 1 else f"model-{shard + 1:05d}-of-{self.shards:05d}.safetensors"
            )
            count = sum(map(math.prod, own.values()))
            files[file] = GeneratedBlob.of(header_of(own, self.dtype), count, 1000 * self.number + shard, self.dtype)
            weight_map |= dict.fromkeys(own, file)
        if self.shards > 1:
            index = {"metadata": {}, "weight_map": weight_map}
            files["model.safetensors.index.json"] = Blob(json.dumps(index).encode())
        date = (DAY + timedelta(minutes=self.number)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        oid = hashlib.sha1(f"{self.name} {self.number}".encode()).hexdigest()
        return [Commit(oid, "upload", date, self.name.split("/")[0], files)]

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, shapes_of(self.architecture).values()))


class ManyRepos(HubServer):
    """
    [`HubServer`] that can be listed, and is not always well.

    Attributes:
        refuse (`Callable`, *optional*): Takes method and path, and gives what the request is refused with, or `None`.
        totals (`bool`): Whether the list says how many parameters a repository has.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cdn = True
        self.refuse: Callable[[str, str], Refused | None] | None = None
        self.totals = True

    def generate(self, count: int, architectures: Sequence[str], first: int = 0) -> None:
        """Adds so many repositories that nobody marked; every 7th is of half precision, every 50th has two shards."""
        for number in range(first, first + count):
            architecture = architectures[number % len(architectures)]
            name = f"user{number % 97}/model-{number}"
            dtype = "F16" if number % 7 == 3 else "F32"
            repo = GeneratedRepo("models", name, number=number, architecture=architecture, dtype=dtype)
            repo.shards = 2 if number % 50 == 17 else 1
            del repo.__dict__["commits"]  # of the parent's: made on demand
            self.repos["models", name] = repo

    def add_marked(self, name: str, folder: Path, minute: int) -> Repo:
        """A folder with a model in it, as if it had been pushed in that minute."""
        self.now = DAY + timedelta(minutes=minute)
        try:
            return self.add_folder(name, folder)
        finally:
            self.now = None

    def handle(self, method: str, path: str, query: dict, headers: Mapping[str, str], body: bytes) -> Answer:
        if self.refuse is not None and (refused := self.refuse(method, path)) is not None:
            raise refused
        if path == "/api/models" and method == "GET":
            return self.list_models(query, headers)
        return super().handle(method, path, query, headers, body)

    def list_models(self, query: dict, headers: Mapping[str, str]) -> Answer:
        """Newest first, a page at a time; the cursor holds the place of the last one on the page before."""
        user = self.users.get(headers.get("Authorization", "").removeprefix("Bearer "))
        with self.lock:
            found = [repo for (kind, _), repo in self.repos.items() if kind == "models"]
        found = [repo for repo in found if not repo.private or repo.name.split("/")[0] == user]
        if "author" in query:
            found = [repo for repo in found if repo.name.split("/")[0] == query["author"]]
        if "search" in query:
            found = [repo for repo in found if query["search"] in repo.name]
        keyed = sorted(((_date(repo), repo.name, repo) for repo in found), key=lambda item: item[:2], reverse=True)
        if "cursor" in query:
            date, _, name = query["cursor"].partition(" ")
            keyed = [item for item in keyed if item[:2] < (date, name)]
        limit = int(query.get("limit", 1000))
        page, extra = keyed[:limit], {}
        if len(keyed) > limit:
            following = {name: value for name, value in query.items() if name != "cursor"}
            following["cursor"] = f"{page[-1][0]} {page[-1][1]}"
            extra["Link"] = f'<{self.url}/api/models?{urlencode(following)}>; rel="next"'
        return Answer(200, [self._entry(repo) for _, _, repo in page], extra)

    def _entry(self, repo: Repo) -> dict[str, Any]:
        entry = {
            "id": repo.name, "sha": repo.head.oid, "lastModified": repo.head.date, "private": repo.private,
            "gated": "manual" if repo.gated else False, "siblings": [{"rfilename": path} for path in sorted(repo.head.files)],
        }  # fmt: skip
        if self.totals and isinstance(repo, GeneratedRepo):
            entry["safetensors"] = {"parameters": {repo.dtype: repo.parameters}, "total": repo.parameters}
        return entry


def _date(repo: Repo) -> str:
    if isinstance(repo, GeneratedRepo) and "commits" not in repo.__dict__:
        return (DAY + timedelta(minutes=repo.number)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return repo.head.date
