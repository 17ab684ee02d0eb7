"""New and changed repositories of the Hub, a page at a time, newest first; whoever was interrupted goes on at the cursor."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, is_offline_mode
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

from ..serialization import InvalidInput
from ..suspects.errors import HubError, hub_errors
from ..suspects.source import REPO_ID
from .settings import WatchSettings, read_moment


FIELDS = ("sha", "lastModified", "gated", "private", "siblings", "safetensors")
MOST_FILES = 10_000
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class ListedRepo:
    """
    What a list says of one repository.

    Args:
        repo (`str`):
            `owner/name`.
        revision (`str`):
            Its commit; empty where the list names none, or an earlier attempt failed: then it is looked up.
        modified (`str`):
            When it was last changed, ISO 8601.
        files (`tuple[str, ...]`):
            Names of its files.
        closed (`str`):
            `gated` or `private`, else empty.
        parameters (`int`):
            Numbers in its safetensors files; 0 where the Hub does not say.
        tries (`int`):
            How often it could not be reached before.
    """

    repo: str
    revision: str = ""
    modified: str = ""
    files: tuple[str, ...] = ()
    closed: str = ""
    parameters: int = 0
    tries: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"files": list(self.files)}

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> "ListedRepo":
        return cls(**{**said, "files": tuple(said["files"])})

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> "ListedRepo | None":
        """From an entry of the Hub's answer; `None` for one that names no repository."""
        name = item.get("id")
        if not isinstance(name, str) or not REPO_ID.fullmatch(name) or ".." in name:
            return None
        siblings = item.get("siblings") or []
        files = [file.get("rfilename") for file in siblings[:MOST_FILES] if isinstance(file, dict)]
        total = (item.get("safetensors") or {}).get("total")
        sha = item.get("sha")
        return cls(
            name,
            sha if isinstance(sha, str) and COMMIT.fullmatch(sha) else "",
            str(item.get("lastModified") or ""),
            tuple(file for file in files if isinstance(file, str)),
            "private" if item.get("private") else "gated" if item.get("gated") else "",
            total if type(total) is int and total > 0 else 0,
        )


@dataclass(frozen=True)
class Page:
    """Some repositories, and the address of the next page; empty after the last one."""

    repos: tuple[ListedRepo, ...]
    cursor: str


def pages(settings: WatchSettings, until: str, cursor: str = "") -> Iterator[Page]:
    """
    The repositories that were changed after `until` (a date; empty for all), newest first.

    Args:
        cursor (`str`, *optional*):
            The address of the page to begin with: that of an interrupted listing.

    Raises:
        [`~suspects.HubError`]: when the Hub cannot be asked.
    """
    if is_offline_mode():
        raise HubError(
            "the Hub: this process is offline (HF_HUB_OFFLINE), and a list of repositories is never cached; unset it"
        )
    start = f"{constants.ENDPOINT}/api/models"
    if cursor and urlsplit(cursor)[:3] != urlsplit(start)[:3]:
        # It came from a server, and the next request carries the token.
        raise InvalidInput(f"the list goes on at {urlsplit(cursor).netloc[:100]}, which is not {constants.ENDPOINT}")
    limit = read_moment(until, "since") if until else None
    address, parameters = cursor or start, None if cursor else _parameters(settings)
    while address:
        with hub_errors("the list of models"):
            answer = http_backoff("GET", address, params=parameters, headers=build_hf_headers(), timeout=60.0)
            hf_raise_for_status(answer)
            items = answer.json()
        repos = [repo for repo in map(ListedRepo.of, items) if repo is not None]
        new = [repo for repo in repos if limit is None or not repo.modified or _moment(repo) > limit]
        following = str(answer.links.get("next", {}).get("url") or "")
        if len(new) < len(repos):  # what comes after is older still
            following = ""
        if following and urlsplit(following)[:3] != urlsplit(start)[:3]:
            raise HubError(f"the list of models goes on at {urlsplit(following).netloc[:100]}, which is another host")
        yield Page(tuple(new), following)
        address, parameters = following, None


def _moment(repo: ListedRepo) -> Any:
    return read_moment(repo.modified, "lastModified")


def _parameters(settings: WatchSettings) -> list[tuple[str, str]]:
    asked = [("sort", "lastModified"), ("direction", "-1"), ("limit", str(settings.batch))]
    asked += [("expand", field) for field in FIELDS]
    asked += [("filter", text) for text in settings.filters]
    asked += [(name, text) for name in ("author", "search") if (text := getattr(settings, name))]
    return asked
