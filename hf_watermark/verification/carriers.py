"""What verifiers of marks in carrier tensors share: which rows are read, once for all sub-keys, and only as many as it takes."""

import math
import random
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ..backbones import (
    Carrier,
    Found,
    LayoutMismatch,
    Placing,
    apart_from,
    by_witness,
    canonical_form,
    canonical_rows,
    extras_in_words,
    find_places,
    has_further_blocks,
    is_plain,
    missing_in_words,
    moved_on,
    own_rows,
    read_carriers,
    read_float,
    read_weight,
    slot_rows,
    surplus_in_words,
    turned_places,
    unexplained,
)
from ..evidence import Access, Check, Evidence, Verdict, combine, single
from ..keys import Claim, SubKey
from ..serialization import InvalidInput, UnreadableFormat
from ..serialization.tensors import dtype_name
from ..statistics import charge_looks, log2_binomial_tail, log2_e_beta_mixture
from ..suspects import Suspect
from ..suspects.remote import RemoteSafetensors
from .portions import owned_blocks
from .ranged import Members, PartialReading, RangedReader, Stops, legible_bits, read_until_decided, score_reading
from .verifier import DECOYS, Verifier, digest_of


# More sets of tensors than this are not tried over a network, where each costs the requests of a check of its own.
MOST_REMOTE_PLACES = 8
# Weights of the carriers whose rows are kept for all sub-keys, in float32 512 MiB.
MOST_KEPT = 2**27
NULL = "the key's bits are independent of the suspect: matches of the n bits that say anything ~ Bin(n, 1/2), exact"


def as_stored(suspect: Suspect) -> Any:
    """The tensors as they lie in the file or repository, where the suspect's are put together from them."""
    return getattr(suspect.weights, "origin", suspect.weights)


def _dtypes(suspect: Suspect) -> Mapping[str, str]:
    known = getattr(suspect.weights, "dtypes", None)
    return known if known is not None else {name: dtype_name(tensor) for name, tensor in suspect.weights.items()}


class CarrierVerifier(Verifier[torch.Tensor | PartialReading]):
    """
    White-box verifier that reads the carrier tensors and the scale vectors behind them, and nothing else. Of a remote checkpoint it reads row
    ranges until the e-value of all sub-keys suffices for the verdict, or shows that more reading is futile, which the e-value allows.
    """

    access = Access.WEIGHTS
    reads_coordinates = True

    def __init__(self, claim: Claim):
        super().__init__(claim)
        self.carriers = read_carriers(self.layout)
        self.subkeys = len(claim.assignment.subkeys)
        # Of an adapter: the carriers lie in what it changes, and nothing is aligned.
        self.of_adapter = self.layout.get("adapter", False)
        if type(self.of_adapter) is not bool:
            raise InvalidInput("layout: `adapter` must be true, or absent")
        self.reads_coordinates = not self.of_adapter
        # What draws the rows that are read first, where several keys are to read the same ones: 32 bytes that no bit of a key depends on.
        self.order: bytes | None = None
        self.stops = Stops()
        # The tensors do not depend on the sub-key, so they are read once for all of them.
        self._rows: tuple[Suspect, dict[str, torch.Tensor]] | None = None
        self._parts: tuple[Suspect, list[PartialReading]] | None = None
        self._placing: tuple[Suspect, Placing] | None = None

    @abstractmethod
    def members(self, subkey: SubKey) -> Members:
        """Where the bits of a sub-key lie."""

    @abstractmethod
    def reduce(self, values: torch.Tensor) -> torch.Tensor:
        """From the canonical weights of the members `[n, size]` to what says a bit, `[n]`."""

    @abstractmethod
    def signs(self, subkey: SubKey) -> torch.Tensor:
        """The key's bits as +-1, `[bits]`."""

    @abstractmethod
    def score_rows(self, rows: torch.Tensor, subkey: SubKey) -> Evidence:
        """The exact test of one sub-key on all of its rows."""

    def verify(self, suspect: Suspect, check: Check = Check(), decoys: int = DECOYS) -> list[Evidence]:
        """
        As every [`~verification.verifier.Verifier`]. Where several sets of tensors have the key's names and shapes (the weights and their running average,
        a teacher and a student), each is read, the strongest counts, and every one is charged as a look. So it is where a base is taken away from
        a merged model, as it stands and with its rows scaled. Where the suspect has more blocks than the key's model, so is every way in which those
        of the key can lie among them.

        Raises:
            [`~backbones.LayoutMismatch`]: when none has; or when shapes and order alone said which tensors are meant, and the mark is not
                seen there, which means nothing.
            [`~serialization.UnreadableFormat`]: when the numbers of none can be told.
        """
        suspect = self.seen(suspect)
        places = self._places(suspect)
        remote = isinstance(as_stored(suspect), RemoteSafetensors)
        if remote and len(places) > MOST_REMOTE_PLACES:
            raise LayoutMismatch(
                f"{len(places)} sets of tensors may be the key's; download the repo with `hf download` and check the folder"
            )
        copies = len({place.found[0].weight for place in places})
        further = places[0].by_names and has_further_blocks(self.carriers, suspect.shapes, copies)
        if further:
            moved = self._moved_on(places, suspect)
            places += moved if not remote or len(places) + len(moved) <= MOST_REMOTE_PLACES else []
        if self.of_adapter and suspect.is_whole:
            places = [replace(place, scaled=scaled) for scaled in (False, True) for place in places]
        turned = [] if self.of_adapter else turned_places(self.carriers, places[0].found, suspect.shapes)
        places += [replace(places[0], found=found) for found in turned]
        exchanged = self._exchanged(places, suspect)
        places += exchanged
        parts = self._strongest(places, suspect, check, decoys)
        if combine(parts, self.method).decide().verdict is Verdict.NOT_FOUND:
            if not places[0].by_names:
                raise LayoutMismatch(
                    "no tensors of the key's names; those of its shapes, taken in order, do not show the mark, which may be because they are "
                    "not the ones that are meant. Give the suspect under the names of its library"
                )
            if places[0].merged:
                raise LayoutMismatch(
                    "reparameterised: branches were merged into one convolution, in which the mark is not seen; give `--reference` with the "
                    "original, or the suspect as it was before"
                )
            if turned:
                raise LayoutMismatch(
                    "its convolutions are laid flat, or their outputs and inputs are exchanged, and in neither order of axes that they may have is the mark seen: "
                    "give the suspect as [out, in, height, width]"
                )
            if further:
                said = (
                    surplus_in_words(places[0].found, suspect.shapes)
                    or "more blocks of these shapes than the key marks"
                )
                tried = f"none of the {len(places)} ways in which they can lie shows it"
                raise LayoutMismatch(
                    f"the suspect has {said}, and {tried if len(places) > 1 else 'those of its numbers do not show it'}: blocks that do nothing may have "
                    "moved the others on. Give the model before the mark as `--reference`, or the suspect without blocks that change no answer"
                )
            if exchanged:
                raise LayoutMismatch(
                    "the rows of its tensors say that names were exchanged among those of one shape, and the mark is not seen in the order that they say: "
                    "give the model before the mark as `--reference`, or the suspect under the names of its library"
                )
            if unexplained(self.carriers, suspect.shapes):
                raise LayoutMismatch(
                    "the tensors of the key's names do not show the mark, and the suspect holds as many others of their shapes under names "
                    "that no library uses; leave only the tensors that the model uses"
                )
            if not self.of_adapter and (
                extra := extras_in_words(self.carriers, places[0].found, suspect.shapes, _dtypes(suspect))
            ):
                raise LayoutMismatch(
                    f"the mark is not seen in the tensors of the key's names, and the suspect holds {extra}, which no layer of the key's model has and which "
                    "may change or replace them; give the suspect as one weight for each layer"
                )
        return parts

    def _places(self, suspect: Suspect) -> list[Placing]:
        try:
            return find_places(self.carriers, suspect.shapes)
        except LayoutMismatch as error:
            missing = missing_in_words(self.carriers, suspect.shapes)
            if not missing:
                raise
            raise LayoutMismatch(
                f"the suspect has {missing}: give the model before the mark as `--reference`, by which the others are told ({error})"
            ) from None

    def _moved_on(self, places: list[Placing], suspect: Suspect) -> list[Placing]:
        """The places in which the key's blocks lie if others were put between them; see [`~backbones.moved_on`]."""
        if self.of_adapter:
            return []
        known = {place.found for place in places}
        return [
            Placing(found) for found in moved_on(self.carriers, places[0].found, suspect.shapes) if found not in known
        ]

    def _exchanged(self, places: list[Placing], suspect: Suspect) -> list[Placing]:
        """The places that the witnesses of the carriers name, where they are other ones; of a remote suspect they are not looked for."""
        named = places[0].by_names and all(place.is_stored for place in places[0].found)
        if self.of_adapter or isinstance(as_stored(suspect), RemoteSafetensors) or not named:
            return []
        known = {place.found for place in places}
        try:
            found = by_witness(self.carriers, places[0].found, suspect.weights, suspect.shapes)
        except UnreadableFormat:  # of a tensor that may be none of the model's
            return []
        return [Placing(item) for item in found if item not in known]

    def seen(self, suspect: Suspect) -> Suspect:
        """
        The suspect whose tensors hold the carriers: of an adapter its changes.

        Raises:
            [`~suspects.AccessError`]: when it offers no weights.
            [`~serialization.Unreadable`]: when the key marks an adapter, and the suspect is a whole model without the base of the key.
        """
        suspect.require(self.access, self.method)
        return suspect.changed(self.claim.context.start) if self.of_adapter else suspect

    def _strongest(self, places: list[Placing], suspect: Suspect, check: Check, decoys: int) -> list[Evidence]:
        readable: list[tuple[bool, float, int]] = []
        failure: UnreadableFormat | None = None
        if len(places) > 1:
            for number, placing in enumerate(places):
                self._read_at(suspect, placing)
                try:
                    parts = super().verify(suspect, check, decoys=0)
                except UnreadableFormat as error:
                    failure = error
                    continue
                # A set without a single informative bit is no better than one that speaks against the mark.
                readable.append((any(part.trials for part in parts), sum(part.log2_e for part in parts), -number))
            if not readable:
                assert failure is not None
                raise failure
        self._read_at(suspect, places[-max(readable)[-1] if readable else 0])
        parts = super().verify(suspect, check, decoys)
        if len(places) > 1:
            for part in parts:
                part.log2_p = charge_looks(part.log2_p, len(places))
                part.log2_e -= math.log2(len(places))
                part.looks *= len(places)
                part.details["readings"] = len(places)
                part.decide()
        return parts

    def _read_at(self, suspect: Suspect, placing: Placing) -> None:
        self._placing, self._rows, self._parts = (suspect, placing), None, None

    def placing(self, suspect: Suspect) -> Placing:
        """Where the carriers lie in this suspect."""
        if self._placing is None or self._placing[0] is not suspect:
            self._read_at(suspect, find_places(self.carriers, suspect.shapes)[0])
        assert self._placing is not None
        return self._placing[1]

    def _by_range(self, suspect: Suspect) -> bool:
        """Whether rows of the suspect's tensors mean something each for itself."""
        weights, found = as_stored(suspect), self.placing(suspect).found
        dtypes: Any = getattr(suspect.weights, "dtypes", {})
        return (
            isinstance(weights, RemoteSafetensors)
            and not self.of_adapter
            and all(place.is_stored for place in found)
            and all(is_plain(dtypes[name]) for place in found for name in filter(None, (place.weight, place.scale)))
        )

    def observe(self, suspect: Suspect, subkey: SubKey, check: Check = Check()) -> torch.Tensor | PartialReading:
        """The canonical rows of the sub-key's slot laid end to end; of a remote checkpoint what says each bit, where it was read."""
        suspect = self.seen(suspect)
        if not self._by_range(suspect):
            return self.rows(suspect, subkey)
        if self._parts is None or self._parts[0] is not suspect:
            subkeys = self.claim.subkeys
            with torch.no_grad():
                open_to_all = all(own.index in check.disclosed for own in subkeys)
                counted = [n for n, own in enumerate(subkeys) if open_to_all or own.index not in check.disclosed]
                owned = owned_blocks(self.carriers, [subkeys[place].slot for place in counted], self.subkeys)
                order = random.Random(self.order or subkeys[counted[0]].stream("order").bytes(32))
                members = list(map(self.members, subkeys))
                found = self.placing(suspect).found
                weights = as_stored(suspect)
                assert isinstance(weights, RemoteSafetensors)
                reader = RangedReader(weights, self.carriers, owned, order, members, self.reduce, found, self.stops)
                parts = read_until_decided(
                    reader, lambda part, place: self.score(part, subkeys[place]), check, counted, self.stops
                )
            self._parts = suspect, parts
        return self._parts[1][self.claim.subkeys.index(subkey)]

    def fingerprint(self, observation: torch.Tensor | PartialReading) -> bytes:
        if isinstance(observation, PartialReading):
            return digest_of(observation.values, observation.read)
        return digest_of(observation)

    def rows(self, suspect: Suspect, subkey: SubKey) -> torch.Tensor:
        """The canonical rows of the sub-key's slot laid end to end."""
        found = self.placing(suspect).found
        large = sum(carrier.rows * carrier.columns for carrier in self.carriers) > MOST_KEPT
        if large and not self.of_adapter:
            return self._rows_of_slot(suspect, subkey)
        if self._rows is None or self._rows[0] is not suspect:
            with torch.no_grad():
                rows = {
                    carrier.role: self._rows_of(suspect, carrier, place).cpu()
                    for carrier, place in zip(self.carriers, found, strict=True)
                }
            self._rows = suspect, rows
        return own_rows(self._rows[1], subkey.slot, self.subkeys)

    def _rows_of_slot(self, suspect: Suspect, subkey: SubKey) -> torch.Tensor:
        """The same where the rows of all slots would take much memory: one tensor is read at a time, and of it only these rows are kept."""
        owned = [
            slot_rows(number, carrier.rows, subkey.slot, self.subkeys) for number, carrier in enumerate(self.carriers)
        ]
        sizes = [len(own) * carrier.eligible for own, carrier in zip(owned, self.carriers, strict=True)]
        found = torch.empty(sum(sizes))
        places = self.placing(suspect).found
        with torch.no_grad():
            for carrier, place, own, kept in zip(self.carriers, places, owned, found.split(sizes), strict=True):
                if place.lost:
                    kept.zero_()
                    continue
                scale = None if place.scale is None else read_float(suspect.weights, place.scale).flatten()
                weight = read_weight(suspect.weights, place)[own.start : own.stop]
                rows = canonical_form(carrier, weight, None if scale is None else scale[own.start : own.stop])
                kept.copy_(rows.flatten())
        return found

    def _rows_of(self, suspect: Suspect, carrier: Carrier, place: Found) -> torch.Tensor:
        base = suspect.base if self.of_adapter and suspect.is_whole else None
        if base is None:
            return canonical_rows(carrier, suspect.weights, suspect.shapes, place)
        start = base.tensors.get(carrier.name)
        if start is None or tuple(start.shape) != carrier.shape:
            raise InvalidInput(f"layout: {carrier.name[:100]!r} is no weight of the base that the key commits to")
        return canonical_form(
            carrier, apart_from(read_weight(suspect.weights, place), start, self.placing(suspect).scaled), None
        )

    def score(self, observation: torch.Tensor | PartialReading, subkey: SubKey) -> Evidence:
        if isinstance(observation, PartialReading):
            # The places stay, only the bits are read: a decoy costs no request.
            return score_reading(self.method, observation, self.signs(subkey))
        return self.score_rows(observation, subkey)

    def score_bits(self, read: torch.Tensor, subkey: SubKey) -> tuple[Evidence, torch.Tensor, torch.Tensor]:
        """
        The exact test of what says each bit, `[bits]`, with the masks of [`legible_bits`].
        """
        legible, right = legible_bits(read, self.signs(subkey))
        matches, trials = int(right.sum()), int(legible.sum())
        evidence = single(
            self.method,
            matches,
            trials,
            log2_binomial_tail(matches, trials) if trials else 0.0,
            NULL,
            self.access,
            log2_e=log2_e_beta_mixture(matches, trials, 0.5) if trials else 0.0,
            details={
                "bit_error_rate": round(1 - matches / trials, 4) if trials else 0.0,
                "erased": len(read) - trials,
            },
        )
        return evidence, legible, right
