"""One repository read once for many keys: ranges that one key has read are at hand for the next one."""

import hashlib
from collections.abc import Iterable

import torch

from ..suspects.remote import Listed, Part, RemoteSafetensors


# Of what was read of a repository. What does not fit is read again, which costs requests and no verdict.
MOST_KEPT = 96 * 2**20


class SharedWeights(RemoteSafetensors):
    """
    As [`~suspects.remote.RemoteSafetensors`], and remembers what it read.

    Attributes:
        digest (`str`): SHA-256 of names, shapes, types, and of all numbers in the order in which they were read first.
    """

    def __init__(self, repo: str, listed: Listed | None = None, token: str | bool | None = None):
        super().__init__(repo, token, listed=listed)
        self.kept: dict[Part, torch.Tensor] = {}
        self.kept_bytes = 0
        self.of_headers = self.requests, self.bytes_read
        self._hash = hashlib.sha256(self.revision.encode())
        for name, info in self.infos.items():
            self._hash.update(f"{name}\0{info.dtype}\0{info.shape}\n".encode())

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def fetch(self, parts: Iterable[Part]) -> dict[Part, torch.Tensor]:
        wanted = list(parts)
        missing = [part for part in wanted if part not in self.kept]
        new = super().fetch(missing) if missing else {}
        for part, tensor in new.items():
            self._hash.update(f"{part}\n".encode())
            self._hash.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
            size = tensor.numel() * tensor.element_size()
            if self.kept_bytes + size <= MOST_KEPT:
                self.kept[part] = tensor
                self.kept_bytes += size
        return {part: new[part] if part in new else self.kept[part] for part in wanted}

    def whole(self) -> dict[str, torch.Tensor]:
        """All tensors, with one request per file; none of them is kept here."""
        parts = {name: Part(name, 0, self._rows(name)) for name, info in self.infos.items() if info.end > info.begin}
        read = super().fetch(parts.values())
        for name, part in parts.items():
            self._hash.update(name.encode())
            self._hash.update(read[part].contiguous().flatten().view(torch.uint8).numpy().data)
        return {name: read[part].reshape(self.shapes[name]) for name, part in parts.items()}

    def for_one_key(self) -> "OneKeysWeights":
        return OneKeysWeights(self)


class OneKeysWeights(SharedWeights):
    """
    The same for one key: it counts as if the key had read alone, because how much is read first depends on what was read before, and all
    keys have to read the same.
    """

    def __init__(self, shared: SharedWeights):
        self.__dict__.update(shared.__dict__)
        self._shared = shared
        self.requests, self.bytes_read = shared.of_headers

    @property
    def digest(self) -> str:
        return self._shared.digest

    def fetch(self, parts: Iterable[Part]) -> dict[Part, torch.Tensor]:
        wanted = list(parts)
        found = self._shared.fetch(wanted)
        self.requests += 1
        self.bytes_read += sum((part.stop - part.start) * self.row_bytes(part.tensor) for part in wanted)
        return found
