"""`MethodFacts`: what a method says about itself. Methods are listed and planned without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Null:
    """
    What a key gets that has nothing to do with the suspect.

    Args:
        chance (`float`):
            Of one match.
        shared (`int`):
            Answers that share one draw of the key. Together they are one unit of evidence.
    """

    chance: float = 0.5
    shared: int = 1


@dataclass(frozen=True)
class Capacity:
    """
    What a backbone can hold of a white-box mark.

    Args:
        most_units (`int`):
            The most that one sub-key can have.
        subkeys (`int`):
            How many of the config's size are embedded by default; 0 where not even one fits.
    """

    most_units: int
    subkeys: int


@dataclass(frozen=True)
class MethodFacts:
    """
    One method in facts. `methods/<m>/facts.py` holds `FACTS`, one entry per method of the folder; a method whose answers differ from those
    here overrides them. Each `config` is one of the method.

    Args:
        access (`str`):
            What a verifier has to see of a suspect.
        summary (`str`):
            One line for people.
        unit (`str`):
            The unit of evidence: one independent draw of the key, in plural.
        field (`str`):
            The config field that a planner may vary, to get more units.
        most (`int`):
            Units that one sub-key can have at most.
        assumption (`str`):
            What the null rests on, in words.
        tests (`int`):
            Tests per sub-key of which the best counts, and which are therefore charged.
        payload (`bool`):
            Whether the verifier reads a message of the owner's own (`read_payload`) and says which layers are wrong (`bit_errors`).
    """

    access: Literal["weights", "probabilities", "labels"]
    summary: str
    unit: str = "bits"
    field: str = "bits"
    most: int = 2**16
    assumption: str = "exact binomial"
    tests: int = 1
    payload: bool = False

    def null(self, config: Any, classes: int) -> Null:
        """Of a model with so many labels."""
        return Null()

    def log2_p(self, matches: int, units: int, chance: float) -> float:
        """log2 p of one test of one sub-key."""
        from ..statistics import log2_binomial_tail

        return log2_binomial_tail(matches, units, chance)

    def most_units(self, config: Any, classes: int) -> int:
        """Units that one sub-key can have at most on a model with so many labels."""
        return self.most

    def fields(self, units: int, classes: int) -> dict[str, int]:
        """Config fields that give at least so many units."""
        return {self.field: units}

    def queries(self, config: Any, classes: int) -> int:
        """Images that a verifier asks per sub-key; 0 where weights are read."""
        return 0

    def capacity(self, config: Any, carriers: Sequence[Any]) -> Capacity | None:
        """What a backbone with these carriers ([`~backbones.Carrier`]) can hold; `None` where its weights do not matter, as for black-box methods."""
        return None


__all__ = ["Capacity", "MethodFacts", "Null"]
