"""What the benchmarks of this project measured, as it ships with the package. Made by `examples/benchmarks/measured_table.py`."""

from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import Field

from ..serialization import parse_json
from ..serialization.schema import Hex32, Slug, Strict, Text, validated
from .matrix.summary import half_width, mean


SCHEMA = "hf-watermark/measured/v1"
MEASURED = "measured.json"
MEASURED_BYTES = 4 * 2**20


class Source(Strict):
    """A result file and its digest."""

    name: Slug
    sha256: Hex32


class Measurement(Strict):
    """
    One figure.

    Args:
        kind (`str`):
            `fidelity`: metric of the marked model minus that of its twin. `rate`: share of matches after `attack`.
        methods (`list[str]`):
            What the model carried (`fidelity`), or what was read (`rate`).
    """

    kind: Literal["fidelity", "rate"]
    methods: Annotated[list[Slug], Field(min_length=1, max_length=16)]
    data: Slug
    backbone: Slug
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    attack: Text
    value: Annotated[float, Field(ge=-1, le=1)]
    source: Slug


class Measured(Strict):
    """All figures and the files they come from."""

    schema_: Annotated[Literal["hf-watermark/measured/v1"], Field(alias="schema")]
    sources: Annotated[list[Source], Field(max_length=1000)]
    entries: Annotated[list[Measurement], Field(max_length=100_000)]


def parse_measured(document: Any, name: str) -> Measured:
    """
    Raises:
        [`~serialization.InvalidInput`]: when the document is no such table.
    """
    return validated(Measured, document, name)


@cache
def shipped_measurements() -> Measured:
    """The table that ships with the package; empty when there is none."""
    path = files("hf_watermark.evaluation") / MEASURED
    if not path.is_file():
        return parse_measured({"schema": SCHEMA, "sources": [], "entries": []}, MEASURED)
    document = parse_json(path.read_bytes(), MEASURED_BYTES, max_brackets=400_000, allow_floats=True)
    return parse_measured(document, MEASURED)


def fidelity_rows(method: str) -> list[dict[str, Any]]:
    """Measured fidelity of models that carry `method`, alone or stacked: one row per combination, data set and backbone, means over seeds."""
    groups: dict[tuple[tuple[str, ...], str, str], list[Measurement]] = {}
    for item in shipped_measurements().entries:
        if item.kind == "fidelity" and method in item.methods:
            groups.setdefault((tuple(item.methods), item.data, item.backbone), []).append(item)
    return [
        {
            "methods": list(methods),
            "data": data,
            "backbone": backbone,
            "seeds": len(found),
            "fidelity_points": round(100 * (mean([item.value for item in found]) or 0.0), 2),
            "half_width_95": _points(half_width([item.value for item in found])),
            "sources": sorted({item.source for item in found}),
        }
        for (methods, data, backbone), found in groups.items()
    ]


def rates_after(method: str) -> dict[str, float]:
    """The worst measured match rate of a method after each attack, over seeds, data sets and backbones."""
    rates: dict[str, float] = {}
    for item in shipped_measurements().entries:
        if item.kind == "rate" and item.methods == [method]:
            rates[item.attack] = min(item.value, rates.get(item.attack, 1.0))
    return rates


def _points(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 2)
