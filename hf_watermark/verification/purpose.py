"""What a key is for and what a suspect says it is: for people who hold the wrong one of the two. No verdict rests on it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..evidence import Access
from ..keys import Claim
from ..serialization import InvalidInput, read_json
from ..serialization.kinds import kind_of_weights
from ..suspects import Suspect


# Key and suspect come from strangers: a name is shown where it looks like one.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,79}")


def at_cross_purposes(claims: Sequence[Claim], suspect: Suspect) -> str:
    """One or two sentences: the model, the classes and the methods that the key was made for, and what the suspect's own files say it is."""
    context, methods = claims[0].context, ", ".join(claim.assignment.method for claim in claims)
    classes = len(context.classes) or next((claim.assignment.layout.get("classes") for claim in claims), None)
    model = _architecture(context.backbone) or "a model of the owner's own"
    counted = f" with {classes} classes" if isinstance(classes, int) else ""
    return f"The key is for {model}{counted}, marked by {methods}" + _own_words(suspect)


def _own_words(suspect: Suspect) -> str:
    if Access.WEIGHTS not in suspect.access:
        return ""
    weights: Any = suspect.weights
    kind = kind_of_weights(getattr(weights, "beside", ()))
    if kind is not None:
        return f"; the suspect {kind.what}. {kind.instead}"
    try:
        called = _architecture(read_json(Path(weights.path) / "config.json", allow_floats=True))
    except (AttributeError, InvalidInput):  # no folder, or none with a config
        return ""
    return f"; the suspect's config.json says that it is {called}" if called else ""


def _architecture(config: dict[str, Any]) -> str:
    """The name that a config of transformers gives to its model."""
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else config.get("model_type")
    inner = config.get("architecture")  # of timm
    names = [name for name in (first, inner) if isinstance(name, str) and _NAME.fullmatch(name)]
    return " of ".join(names)
