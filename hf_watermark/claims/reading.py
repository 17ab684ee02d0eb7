"""How a claimant's sub-key is read from a model: directly, and in the coordinates of his own published model (PROTOCOL.md §5.2, E2)."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from ..evidence import Access, Check, Evidence, Verdict
from ..keys import Opening, WatermarkKey, start_digest
from ..mapping import AutoVerifier
from ..publishing.publication import Publication
from ..serialization import InvalidInput, canonical_json, named_tensors_digest
from ..suspects import Suspect
from ..suspects.errors import HubError
from ..suspects.source import Source
from ..verification.verifier import Verifier, unreadable
from ..verifying import run_check


@dataclass(frozen=True)
class Model:
    """
    A model to be read; opened when it is first needed, and the same from then on.

    Args:
        given:
            Folder, file, `owner/name[@revision]`, [`Publication`], module, or a function from images to answers.
    """

    given: Any
    token: str | bool | None = None

    @property
    def name(self) -> str:
        if isinstance(self.given, Publication | Source):
            return self.given.name
        if isinstance(self.given, str | Path):
            return str(self.given)
        return str(getattr(self.given, "__name__", type(self.given).__name__))

    def reach(self) -> None:
        """
        Raises:
            [`~serialization.InvalidInput`]: when there is no such model, or it cannot be reached. That says nothing about a mark.
        """
        _ = self._place

    @cached_property
    def _place(self) -> Publication | None:
        is_place = isinstance(self.given, Publication | Source | str | Path) and not self._is_file
        return Publication.read(self.given, self.token) if is_place else None

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
        place = self._place
        if place is None:
            return {"name": self.name}
        files = {path: place.sha256(path) for path in place.files if path.endswith(".safetensors")}
        return {"name": place.name, "commit": place.commit, "files": files}

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
        return self.given if self._place is None else self._place.suspect(opening.backbone)

    def committed(self, key: Opening | WatermarkKey) -> nn.Module:
        """
        As the model that `key` was made for.

        Raises:
            [`~serialization.InvalidInput`]: when it is another one.
        """
        model = self.given if self._place is None else self._place.model(key.backbone)
        if not isinstance(model, nn.Module):
            raise InvalidInput(f"{self.name} is no model; give the folder or repository that it was saved in")
        if not key.context.start or start_digest(model.state_dict()) != key.context.start:
            another = "another one" if key.context.start else "none"
            raise InvalidInput(f"{self.name} is not the model that the key was made for: the key commits to {another}")
        return model


@dataclass
class Reference:
    """
    What the suspects of one claim are aligned to: the model that the key was made for, where it is delivered, or else the claimant's
    published one.

    Args:
        key ([`Opening`] or [`WatermarkKey`]):
            Says which model it was made for.
        publication ([`Publication`]):
            The claimant's published model, V1 of which passed.
        start ([`Model`], *optional*):
            What is delivered as the model that the key was made for.
        wrong (`str`):
            Why that is not used; known once the model was needed, and empty where it is right.
    """

    key: Opening | WatermarkKey
    publication: Publication
    start: Model | None = None
    wrong: str = ""

    @cached_property
    def base(self) -> nn.Module | None:
        """The model that the key was made for, where it is delivered: also the base of an adapter."""
        if self.start is None:
            return None
        try:
            return self.start.committed(self.key)
        except HubError:
            raise  # the network, not the model
        except InvalidInput as error:
            self.wrong = str(error)
            return None

    @cached_property
    def model(self) -> nn.Module:
        return published_model(self.publication, self.key) if self.base is None else self.base

    def noted(self, evidence: Evidence) -> Evidence:
        """The evidence, which never says "not found" where the start was wrong: by the right one the mark might be seen."""
        if self.wrong:
            evidence.warnings.append(f"the start was wrong, and the published model took its place: {self.wrong}")
            if evidence.verdict is Verdict.NOT_FOUND:
                evidence.unread = (
                    f"a mark under reordered channels may be there, and the start was wrong: {self.wrong}"
                )
                evidence.decide()
        return evidence


@dataclass(frozen=True)
class Reader:
    """
    Reads one opened sub-key from models.

    Args:
        reference ([`Reference`]):
            What aligned readings align to.
    """

    opening: Opening
    reference: Reference

    @cached_property
    def _method(self) -> type[Verifier]:
        return AutoVerifier.for_method(self.opening.assignment.method)

    @property
    def aligns(self) -> bool:
        return self._method.reads_coordinates and not self._of_adapter

    @property
    def _of_adapter(self) -> bool:
        return bool(self.opening.assignment.layout.get("adapter"))

    @property
    def asks(self) -> bool:
        """Whether the mark is in the answers, and not in the weights."""
        return self._method.access is not Access.WEIGHTS

    def read(self, model: Model, check: Check) -> Evidence:
        """
        The evidence of one model. Where the method reads coordinates there is a second, aligned reading if the direct one does not find
        the mark; it is charged in any case, and counts only as [`Check.doubt`] says. What cannot be read is `inconclusive`.
        """
        if not self.aligns:
            return self.read_directly(model, check)
        return self.reference.noted(self._read(model, check, lambda: self.reference.model))

    def read_directly(self, model: Model, check: Check) -> Evidence:
        """Without the second reading and its charge."""
        return self._read(model, check, None)

    def _read(self, model: Model, check: Check, reference: Callable[[], nn.Module] | None) -> Evidence:
        model.reach()
        try:
            base = self.reference.base if self._of_adapter else None
            return run_check(model.open(self.opening), self.opening, check, later=reference, base=base)
        except HubError:
            raise  # the network, not the model
        except InvalidInput as error:
            return unreadable(str(error), check)


def published_model(publication: Publication, key: Opening | WatermarkKey) -> nn.Module:
    """
    The claimant's published model, built by what the key commits to and never by the repository's config.

    Raises:
        [`~serialization.InvalidInput`]: when its tensors are not those of the statement, or cannot be built.
    """
    if not key.backbone:
        raise InvalidInput("the key commits to no architecture, so the claimant's published model cannot be built")
    publication.refuse_other_tensors(publication.statement)
    return publication.model(key.backbone)
