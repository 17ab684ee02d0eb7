"""Safetensors on the Hugging Face Hub: single tensors, or rows of them, by HTTP range requests at one pinned commit."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from huggingface_hub import constants, hf_hub_url, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

from ..serialization import JSON_BYTES, InvalidInput, SafetensorsFolder, parse_json, parse_safetensors_header
from ..serialization.files import naming
from ..serialization.folders import INDEX_NAME, choose_weight_files, merge_headers, refuse_twice, said_of
from ..serialization.tensors import (
    HEADER_BYTES,
    WEIGHT_BYTES,
    NamedTensors,
    TensorInfo,
    as_tensor,
    header_length,
    refuse_not_finite,
)
from .errors import HubError, hub_errors
from .source import hub_api, parse_repo


# As much as the Hub's own client asks for at once: nearly every header fits, so it costs one request.
FIRST_BYTES = 100_000
# Ranges closer than this are read as one: a request costs more time than these bytes.
GAP_BYTES = 65_536


class Part(NamedTuple):
    """Rows `start` to `stop` (first dimension) of one tensor."""

    tensor: str
    start: int
    stop: int


class Listed(NamedTuple):
    """What a list of repositories says of one: the commit, and the names of its files."""

    revision: str
    files: frozenset[str]


class RangesIgnored(HubError):
    """The server does not send the bytes that were asked for; the whole files have to be downloaded."""


class RemoteSafetensors(NamedTensors):
    """
    The safetensors of a Hub repo as a mapping that reads one tensor at a time, without downloading the files.

    The revision is resolved to a commit once, and everything is read at that commit. All headers are read and checked on construction
    (two requests for a model in one file, one more per further shard and one for the index). Nothing is written to disk. The
    requests are those of `huggingface_hub`, with its endpoint, token, retries and time limits.

    Args:
        repo (`str`):
            `user/repo`, or `user/repo@revision` with a branch, tag or commit.
        token (`str` or `bool`, *optional*):
            Access token; by default the one that `huggingface_hub` finds (`HF_TOKEN`, `hf auth login`); `False` sends none.
        max_bytes (`int`, *optional*, defaults to 16 GiB):
            Largest accepted sum of file sizes.
        listed ([`Listed`], *optional*):
            What is known already, which saves the first request. Sizes are then learned with the first bytes of each file.

    Attributes:
        revision (`str`): The commit, 40 hexadecimal digits.
        infos, shapes, dtypes (`dict`): As in [`SafetensorsFolder`].
        size (`int`): Bytes of all weight files.
        requests, bytes_read (`int`): What was asked for so far, redirects included.

    Raises:
        [`HubError`]: when the repo or revision does not exist, may not be read, or the Hub cannot be reached; [`RangesIgnored`] when the
            server does not serve ranges.
        [`~serialization.InvalidInput`]: when it holds no well-formed safetensors.
        [`~serialization.UnreadableFormat`]: on reading a tensor of a type that cannot be read, or with NaN or infinite values.

    Example:

    ```python
    >>> weights = RemoteSafetensors("me/suspect@main")
    >>> weights.shapes["classifier.weight"], weights["classifier.weight"].norm()
    ```
    """

    def __init__(
        self,
        repo: str,
        token: str | bool | None = None,
        max_bytes: int = WEIGHT_BYTES,
        listed: Listed | None = None,
    ):
        parsed = parse_repo(repo)
        if parsed is None:
            raise InvalidInput(f"{repo[:200]!r} is no repo; give user/repo or user/repo@revision")
        self.repo, wanted = parsed
        self.requests = self.bytes_read = 0
        self._data_starts: dict[str, int] = {}
        self._places: dict[str, str] = {}
        self._api = hub_api(token)
        self._listed = listed is not None
        if listed is None:
            with hub_errors(repo):
                # One request gives the commit and the size of every file.
                found = self._api.model_info(self.repo, revision=wanted, files_metadata=True)
            self.requests += 1
            listed = Listed(str(found.sha), frozenset(file.rfilename for file in found.siblings or []))
            self._sizes = {file.rfilename: file.size for file in found.siblings or []}
        else:
            self._sizes = dict.fromkeys(listed.files)
        self.revision = listed.revision
        if not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise HubError(f"{repo}: the Hub named no commit for this revision")
        self.beside = listed.files
        chosen = choose_weight_files(self._sizes, self._read_index, repo)
        self.left_out, self.lacking = chosen.left_out, said_of(chosen.lacking)
        starts = {file: self._first_bytes(file) for file in chosen.files} if self._listed else {}
        self.size = sum(self._size_of(file) for file in chosen.files)
        if self.size > max_bytes:
            raise InvalidInput(f"{repo}: its weights have {self.size} bytes, limit {max_bytes}.")
        headers = {file: self._read_header(file, starts.get(file)) for file in chosen.files}
        self.infos, self._files, self._twice = merge_headers(headers, chosen.weight_map, repo)
        self.shapes = {name: info.shape for name, info in self.infos.items()}
        self.dtypes = {name: info.dtype for name, info in self.infos.items()}

    @property
    def name(self) -> str:
        """Repo and commit."""
        return f"{self.repo}@{self.revision[:12]}"

    def __getitem__(self, name: str) -> torch.Tensor:
        info = self.infos[name]
        if info.begin == info.end:
            return as_tensor(bytearray(), info, info.shape, name, self.name)
        part = Part(name, 0, self._rows(name))
        return self.fetch([part])[part].reshape(self.shapes[name])

    def fetch(self, parts: Iterable[Part]) -> dict[Part, torch.Tensor]:
        """
        Reads several row ranges with as few requests as their places allow: neighbours in a file come in one range.

        Returns:
            `dict[Part, torch.Tensor]`: `[stop - start, ...]` each, as stored (no cast).

        Raises:
            `KeyError`: for a tensor that is not there, `IndexError` for rows that are not.
        """
        places = sorted({(self._files[part.tensor], *self._span(part), part) for part in parts})
        tensors: dict[Part, torch.Tensor] = {}
        together: list[tuple[str, int, int, Part]] = []
        for place in places:
            if together and (
                place[0] != together[0][0] or place[1] > max(end for _, _, end, _ in together) + GAP_BYTES
            ):
                tensors |= self._read_together(together)
                together = []
            together.append(place)
        return tensors | (self._read_together(together) if together else {})

    def download(self) -> SafetensorsFolder:
        """All weight files through the Hub's own cache, for checks that have to run the model."""
        files = sorted({*self._files.values(), *({INDEX_NAME} & self._sizes.keys())})
        with hub_errors(self.repo):
            folder = snapshot_download(
                self.repo,
                revision=self.revision,
                allow_patterns=files,
                token=self._api.token,
                endpoint=self._api.endpoint,
            )
        return SafetensorsFolder(folder, partial=True)

    def document(self, name: str) -> dict[str, Any]:
        """As of [`~serialization.SafetensorsFolder`]; costs a request where the file is there and small."""
        raw = b""
        if self._listed and name in self._sizes and self._sizes[name] is None:
            try:
                raw = self._first_bytes(name)
            except HubError:
                raise
            except InvalidInput:  # an empty file
                return {}
        size = self._sizes.get(name)
        if not isinstance(size, int) or not 0 < size <= JSON_BYTES:
            return {}
        raw = raw + bytes(self._read(name, len(raw), size)) if len(raw) < size else raw
        try:
            return parse_json(raw, allow_floats=True)
        except InvalidInput:
            return {}

    def row_bytes(self, name: str) -> int:
        """Bytes of one row of a tensor."""
        info = self.infos[name]
        return (info.end - info.begin) // self._rows(name)

    def _rows(self, name: str) -> int:
        shape = self.infos[name].shape
        return shape[0] if shape else 1

    def _span(self, part: Part) -> tuple[int, int]:
        """Bytes of a part, counted from the start of its file."""
        info, row = self.infos[part.tensor], self.row_bytes(part.tensor)
        if not 0 <= part.start < part.stop <= self._rows(part.tensor):
            raise IndexError(f"rows {part.start} to {part.stop} of {part.tensor}, which has {self._rows(part.tensor)}")
        refuse_twice(part.tensor, self._twice, self.name)
        first = self._data_starts[self._files[part.tensor]] + info.begin
        return first + part.start * row, first + part.stop * row

    def _read_together(self, places: list[tuple[str, int, int, Part]]) -> dict[Part, torch.Tensor]:
        file, first, last = places[0][0], places[0][1], max(place[2] for place in places)
        data = self._read(file, first, last)
        tensors = {}
        for _, begin, end, part in places:
            info = self.infos[part.tensor]
            shape = (part.stop - part.start, *info.shape[1:])
            tensor = as_tensor(memoryview(data)[begin - first : end - first], info, shape, part.tensor, self.name)
            refuse_not_finite(tensor, part.tensor, f"{self.name}/{file}")
            tensors[part] = tensor
        return tensors

    def _read_index(self) -> dict[str, Any]:
        raw = self._first_bytes(INDEX_NAME) if self._listed else b""
        size = self._size_of(INDEX_NAME)
        if size > HEADER_BYTES:
            raise InvalidInput(f"{self.repo}/{INDEX_NAME} has {size} bytes, limit {HEADER_BYTES}.")
        if size > len(raw):
            raw += bytes(self._read(INDEX_NAME, len(raw), size))
        with naming(f"{self.repo}/{INDEX_NAME}"):
            return parse_json(raw, HEADER_BYTES, allow_floats=True)

    def _first_bytes(self, file: str) -> bytes:
        """The start of a file whose size is not known yet, and with it the size."""
        data = self._ask(file, 0, FIRST_BYTES)
        if data is None or len(data) != min(FIRST_BYTES, self._size_of(file)):
            raise RangesIgnored(f"{self.repo}/{file}: got {len(data or b'')} bytes of its start; try again")
        return bytes(data)

    def _read_header(self, file: str, start: bytes | None = None) -> dict[str, TensorInfo]:
        size = self._size_of(file)
        # Only what is wrong with the file is named after it; the Hub's errors keep their kind.
        start = bytes(self._read(file, 0, min(size, FIRST_BYTES))) if start is None else start
        with naming(f"{self.repo}/{file}"):
            length = header_length(start, size)
        if length + 8 > len(start):
            start += self._read(file, len(start), length + 8)
        self._data_starts[file] = length + 8
        with naming(f"{self.repo}/{file}"):
            return parse_safetensors_header(start[8 : length + 8], size - 8 - length)

    def _size_of(self, file: str) -> int:
        size = self._sizes.get(file)
        if not isinstance(size, int) or size <= 0:
            raise InvalidInput(f"{self.repo}: its file {file} is missing or empty, or the Hub does not say its size.")
        return size

    def _read(self, file: str, begin: int, end: int) -> bytearray:
        """Bytes `begin` to `end` of a file; never more, whatever the server sends."""
        data = self._ask(file, begin, end) if file in self._places else None
        # The address that the Hub redirected to may have expired: then the Hub is asked for a new one.
        data = self._ask(file, begin, end) if data is None else data
        if data is None or len(data) != end - begin:
            raise RangesIgnored(
                f"{self.repo}/{file}: got {len(data or b'')} bytes, asked for {end - begin}; try again"
            )
        return data

    def _ask(self, file: str, begin: int, end: int) -> bytearray | None:
        """One range request; `None` when the remembered address refuses it."""
        url, place = (
            hf_hub_url(self.repo, file, revision=self.revision, endpoint=self._api.endpoint),
            self._places.pop(file, None),
        )
        # A signed address of a content network needs no token and must not learn it.
        headers = build_hf_headers(token=False if place else self._api.token)
        headers |= {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        data = bytearray()
        with hub_errors(f"{self.repo}/{file}"):  # noqa: SIM117
            # The time limit is one of silence: a large range may take longer.
            with http_stream_backoff(
                "GET", place or url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            ) as response:
                self.requests += 1 + len(response.history)
                if place and response.is_client_error:
                    return None
                hf_raise_for_status(response)
                whole = self._sizes[file] if self._sizes[file] is not None else _size_in(response.headers)
                if response.status_code != 206 and (begin != 0 or whole is None or end < whole):
                    raise RangesIgnored(
                        f"{self.repo}/{file}: the server ignored the range request (status {response.status_code}); download the "
                        "repo with `hf download` and check the folder"
                    )
                if self._sizes[file] is None:
                    self._sizes[file] = _size_in(response.headers)
                if str(response.url) != url:
                    self._places[file] = str(response.url)
                # A connection that breaks here is no reason to ask again from within: the client cannot.
                with hub_errors(f"{self.repo}/{file}"):
                    for chunk in response.iter_raw():
                        data += chunk
                        if len(data) > end - begin:
                            break
        self.bytes_read += len(data)
        return data


def _size_in(headers: Mapping[str, str]) -> int | None:
    """The size of the whole file that a server's answer to a range states; `None` where it states none."""
    total = headers.get("content-range", "").rpartition("/")[2] or headers.get("content-length", "")
    return int(total) if total.isascii() and total.isdigit() else None


def cached_folder(repo: str) -> SafetensorsFolder:
    """
    The weights of a repo from the Hub's local cache alone: what offline mode (`HF_HUB_OFFLINE=1`) can read.

    Raises:
        [`HubError`]: when they are not there.
    """
    parsed = parse_repo(repo)
    if parsed is None:
        raise InvalidInput(f"{repo[:200]!r} is no repo; give user/repo or user/repo@revision")
    try:
        folder = snapshot_download(
            parsed[0], revision=parsed[1], allow_patterns=["*.safetensors", INDEX_NAME], local_files_only=True
        )
    except LocalEntryNotFoundError:
        raise HubError(
            f"{repo} is not in the cache and offline mode is on; run `hf download {parsed[0]}` once with network, or unset "
            "HF_HUB_OFFLINE"
        ) from None
    return SafetensorsFolder(folder, partial=True)
