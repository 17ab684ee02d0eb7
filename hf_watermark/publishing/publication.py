"""What somebody published, read once: every check of it is a function of this one object."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from ..backbones import run_on_backbone
from ..serialization import InvalidInput, SafetensorsFolder, named_tensors_digest, tensor_set_digest
from ..serialization.documents import JSON_BYTES
from ..suspects import Suspect
from ..suspects.source import RepoSource, Source
from .describe import POOL, SUBKEY0
from .precommit import PRECOMMIT
from .publish import SIGNATURE
from .revocation import REVOCATION, Revocations, SignedRevocation
from .statement import STATEMENT, SignedStatement, Statement
from .timestamp import TOKEN_BYTES


SIGNATURE_BYTES = 2**20


@dataclass(frozen=True)
class Papers:
    """
    The small files beside a model. What is wrong with one of them is a finding about its publisher, said when that file is asked for.

    Args:
        signed ([`SignedStatement`], *optional*):
            The statement, if there is one that can be read.
        contents (`Mapping[str, bytes]`):
            Files by path.
        refused (`Mapping[str, InvalidInput]`):
            Why a file that is there was not taken: it is too large, malformed, or cannot be fetched.
    """

    signed: SignedStatement | None
    contents: Mapping[str, bytes]
    refused: Mapping[str, InvalidInput]

    @classmethod
    def read(cls, source: Source) -> "Papers":
        """The statement, and every file that it names as a proof."""
        contents: dict[str, bytes] = {}
        refused: dict[str, InvalidInput] = {}

        def take(path: str, most: int) -> None:
            try:
                raw = source.read(path, most)
                if raw is not None:
                    contents[path] = raw
            except InvalidInput as error:
                refused[path] = error

        take(STATEMENT, JSON_BYTES)
        signed = None
        if STATEMENT in contents:
            try:
                signed = SignedStatement.parse(contents[STATEMENT])
            except InvalidInput as error:
                refused[STATEMENT] = error
        for path, most in () if signed is None else _named(signed):
            if path not in contents and path not in refused:
                take(path, most)
        return cls(signed, contents, refused)

    def get(self, path: str) -> bytes | None:
        """
        Content of a file; `None` where there is none.

        Raises:
            [`~serialization.InvalidInput`]: when it was refused.
        """
        if path in self.refused:
            raise self.refused[path]
        return self.contents.get(path)


def _named(signed: SignedStatement) -> Iterator[tuple[str, int]]:
    """Paths of the files that prove a statement, with their largest size in bytes."""
    yield PRECOMMIT, JSON_BYTES
    yield SUBKEY0, JSON_BYTES
    if signed.statement.oms_public_key is not None:
        yield SIGNATURE, SIGNATURE_BYTES
    for stamp in (*signed.statement.precommit_timestamps, *signed.timestamps):
        yield stamp.path, TOKEN_BYTES


@dataclass(frozen=True)
class Publication:
    """
    A model in a folder or repository, with what stands beside it. Make one with [`Publication.read`]. Weights are opened when they are first
    asked for; nothing is read twice.
    """

    source: Source

    @classmethod
    def read(cls, place: "Publication | Source | str | Path", token: str | bool | None = None) -> "Publication":
        """
        Args:
            place (`str` or `Path`): A folder, or `owner/name[@revision]`.

        Raises:
            [`~suspects.errors.HubError`]: when the repository is private, gated, missing or cannot be reached.
            [`~serialization.InvalidInput`]: when it is neither.
        """
        return place if isinstance(place, Publication) else cls(Source.open(place, token))

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def commit(self) -> str | None:
        return self.source.commit

    @property
    def files(self) -> Mapping[str, int]:
        """All files with their bytes."""
        return self.source.sizes

    @cached_property
    def papers(self) -> Papers:
        return Papers.read(self.source)

    @property
    def statement(self) -> Statement:
        """The statement of a model whose V0 passed."""
        assert self.papers.signed is not None
        return self.papers.signed.statement

    @cached_property
    def _digests(self) -> dict[str, str]:
        return {}

    def sha256(self, path: str) -> str:
        if path not in self._digests:
            self._digests[path] = self.source.sha256(path)
        return self._digests[path]

    @cached_property
    def weights(self) -> SafetensorsFolder:
        """
        Raises:
            [`~serialization.InvalidInput`]: when there is no safetensors file, or a malformed one.
        """
        return self.source.weights()

    @cached_property
    def tensor_set_sha256(self) -> str:
        return tensor_set_digest(self.weights)

    @cached_property
    def named_tensors_sha256(self) -> str:
        return named_tensors_digest(self.weights)

    @cached_property
    def revocations(self) -> tuple[SignedRevocation, ...]:
        """
        Those that were published here, whoever signed them. Where an earlier state is read, those of the latest one too: a revocation is younger
        than what it revokes.

        Raises:
            [`~serialization.InvalidInput`]: when the file is malformed.
        """
        latest = self.source.latest()
        places = [self.source] if latest is self.source else [self.source, latest]
        found = [Revocations.parse(raw) for place in places if (raw := place.read(REVOCATION)) is not None]
        return tuple(entry for document in found for entry in document.entries)

    def pool(self) -> dict[str, Any]:
        """The source images that its owner published with sub-key 0; none where there are none."""
        return dict(SafetensorsFolder(self.source.path(POOL))) if POOL in self.source else {}

    def suspect(self, backbone: Mapping[str, Any]) -> Suspect:
        """
        The model as a suspect. Of a repository only the ranges that a check needs are fetched, unless it must be asked.

        Args:
            backbone (`Mapping`): The committed architecture on which it is asked; empty where it can only be read.
        """
        if isinstance(self.source, RepoSource):
            return Suspect.open(f"{self.source.model_id}@{self.source.commit}", backbone, self.source.token)
        return Suspect.open(self.weights.path, backbone)

    def model(self, backbone: Mapping[str, Any]) -> nn.Module:
        """Its tensors on an architecture, never on that of the repository's config."""
        return run_on_backbone(backbone, self.weights)

    def refuse_other_tensors(self, statement: Statement) -> None:
        """
        Raises:
            [`~serialization.InvalidInput`]: when the tensors are not those of the statement; says in what way.
        """
        if self.named_tensors_sha256 == statement.weights.named_tensors_sha256:
            return
        if self.tensor_set_sha256 == statement.weights.tensor_set_sha256:
            raise InvalidInput(
                "the tensors of the statement are there, but under other names: they were swapped or renamed"
            )
        raise InvalidInput("the weights are not those of the statement: another model, or changed after signing")
