"""How a claimant's sub-key is read from a model: directly, and in the coordinates of his own published model (PROTOCOL.md §5.2, E2)."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from ..backbones import run_on_backbone
from ..evidence import Check, Evidence, Verdict
from ..keys import Opening, WatermarkKey, start_digest
from ..mapping import AutoVerifier
from ..publishing.statement import Statement
from ..serialization import InvalidInput, canonical_json, named_tensors_digest
from ..suspects import Suspect
from ..suspects.errors import HubError
from ..suspects.source import Source
from ..verification.verifier import unreadable
from ..verifying import run_check
from .levels import refuse_other_tensors
from .subkeys import suspect_of


@dataclass(frozen=True)
class Model:
    """
    A model to be read; opened when it is first needed, and the same from then on.

    Args:
        given:
            Folder, file, `owner/name[@revision]`, [`Source`], module, or a function from images to answers.
    """

    given: Any
    token: str | bool | None = None

    @property
    def name(self) -> str:
        if isinstance(self.given, Source):
            return self.given.name
        if isinstance(self.given, str | Path):
            return str(self.given)
        return str(getattr(self.given, "__name__", type(self.given).__name__))

    def reach(self) -> None:
        """
        Raises:
            [`~serialization.InvalidInput`]: when there is no such model, or it cannot be reached. That says nothing about a mark.
        """
        _ = self._source

    @cached_property
    def _source(self) -> Source | None:
        is_place = isinstance(self.given, Source | str | Path) and not self._is_file
        return Source.open(self.given, self.token) if is_place else None

    @property
    def _is_file(self) -> bool:
        return isinstance(self.given, str | Path) and Path(self.given).is_file()

    @cached_property
    def fixed(self) -> dict[str, Any]:
        """Name, commit and digests, for the transcript."""
        if self._is_file:
            with Path(self.given).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {"name": self.name, "files": {Path(self.given).name: digest}}
        source = self._source
        if source is None:
            return {"name": self.name}
        files = {path: source.sha256(path) for path in source.sizes if path.endswith(".safetensors")}
        return {"name": source.name, "commit": source.commit, "files": files}

    @property
    def digest(self) -> str:
        """One digest of the contents, under whatever name; of what cannot be read, of the name."""
        if isinstance(self.given, nn.Module):
            return named_tensors_digest(self.given.state_dict())
        files = sorted(set(self.fixed.get("files", {}).values())) or [self.name]
        return hashlib.sha256(canonical_json(files)).hexdigest()

    def open(self, opening: Opening) -> Any:
        """The model as [`run_check`] takes it, on the claimant's architecture where it must be asked."""
        if self._is_file:
            return Suspect.open(Path(self.given), opening.backbone)
        return self.given if self._source is None else suspect_of(self._source, opening)

    def committed(self, key: Opening | WatermarkKey) -> nn.Module:
        """
        As the model that `key` was made for.

        Raises:
            [`~serialization.InvalidInput`]: when it is another one.
        """
        source = self._source
        model = self.given if source is None else run_on_backbone(key.backbone, source.weights())
        if (
            not isinstance(model, nn.Module)
            or not key.context.start
            or start_digest(model.state_dict()) != key.context.start
        ):
            raise InvalidInput(
                f"{self.name} is not the model that the key was made for: the key commits to another one, or to none"
            )
        return model


@dataclass(frozen=True)
class Reader:
    """
    Reads one opened sub-key from models.

    Args:
        source ([`Source`]), statement ([`Statement`]):
            The claimant's published model, V1 of which passed: the reference of aligned readings, unless there is a `start`.
        start ([`Model`], *optional*):
            What the claimant delivers as the model that his key was made for.
    """

    opening: Opening
    source: Source
    statement: Statement
    start: Model | None = None

    @property
    def aligns(self) -> bool:
        return AutoVerifier.for_method(self.opening.assignment.method).reads_coordinates

    def read(self, model: Model, check: Check) -> Evidence:
        """
        The evidence of one model. Where the method reads coordinates there is a second, aligned reading if the direct one does not find
        the mark; it is charged in any case, and counts only as [`Check.doubt`] says. What cannot be read is `inconclusive`.
        """
        model.reach()
        return _seen(lambda: self._read(model.open(self.opening), check), check)

    def read_directly(self, model: Model, check: Check) -> Evidence:
        """Without the second reading and its charge."""
        model.reach()
        return _seen(lambda: run_check(model.open(self.opening), self.opening, check), check)

    def _read(self, suspect: Any, check: Check) -> Evidence:
        if not self.aligns:
            return run_check(suspect, self.opening, check)
        twice = replace(check, looks=2 * check.looks)
        direct = _seen(lambda: run_check(suspect, self.opening, twice), twice)
        if direct.verdict in (Verdict.FOUND, Verdict.INVALID):
            return direct
        try:
            reference = self._reference
        except InvalidInput as error:
            direct.warnings.append(f"nothing was aligned: {error}")
            return direct
        return run_check(suspect, self.opening, check, reference)

    @cached_property
    def _reference(self) -> nn.Module:
        if self.start is None:
            return published_model(self.source, self.statement, self.opening)
        return self.start.committed(self.opening)


def _seen(read: Callable[[], Evidence], check: Check) -> Evidence:
    try:
        return read()
    except HubError:
        raise  # the network, not the model
    except InvalidInput as error:
        return unreadable(str(error), check)


def published_model(source: Source, statement: Statement, key: Opening | WatermarkKey) -> nn.Module:
    """
    The claimant's published model, built by what the key commits to and never by the repository's config.

    Raises:
        [`~serialization.InvalidInput`]: when its tensors are not those of the statement, or cannot be built.
    """
    if not key.backbone:
        raise InvalidInput("the key commits to no architecture, so the claimant's published model cannot be built")
    tensors = source.weights()
    refuse_other_tensors(tensors, statement)
    return run_on_backbone(key.backbone, tensors)


def was_aligned(evidence: Evidence) -> bool:
    """Whether an aligned reading was taken."""
    return "alignment" in evidence.details
