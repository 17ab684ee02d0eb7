"""
Null tables: what a method's test gave on models that are known to carry no mark.

p-values of this library are exact or proven, so a table can only take away: it is a control, like decoy keys. Where unmarked models passed a
threshold more often than it allows, the test does not mean what it says, and a verdict that rests on it becomes `inconclusive`.
"""

import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..evidence import Evidence
from ..serialization import InvalidInput, parse_json, read_json, write_json_atomic
from ..serialization.schema import Slug, Strict, Text, validated
from ..statistics import log2_binomial_tail


SCHEMA = "hf-watermark/null-table/v1"
TABLE_BYTES = 256 * 1024
THRESHOLDS = (0.1, 0.01, 0.001, 0.0001)
# A method whose null holds fails once in a million tables.
LOG2_ALARM = math.log2(1e-6)
SHIPPED = "null_tables"

Count = Annotated[int, Field(ge=0, lt=2**53)]


class Exceedance(Strict):
    """How many of the pairs had a p-value of at most `p`."""

    p: Annotated[float, Field(gt=0, lt=1)]
    count: Count


class NullEntry(Strict):
    """
    One method.

    Args:
        config (`dict`):
            Full config of the method. A table speaks about this config only.
        pairs (`int`):
            Null models times keys.
        smallest_log2_p (`float`):
            The strongest false evidence among them.
        mean_rate (`float`):
            Mean share of matches.
    """

    method: Slug
    config: dict[str, Any]
    pairs: Annotated[int, Field(ge=1, lt=2**53)]
    exceedances: Annotated[list[Exceedance], Field(min_length=1, max_length=32)]
    smallest_log2_p: Annotated[float, Field(ge=-256, le=0)]
    mean_rate: Annotated[float, Field(ge=0, le=1)]

    @model_validator(mode="after")
    def _counts(self) -> "NullEntry":
        for row in self.exceedances:
            if row.count > self.pairs:
                raise ValueError(f"{row.count} of {self.pairs} pairs cannot be below p = {row.p}")
            if (row.count > 0) != (2.0**self.smallest_log2_p <= row.p):
                raise ValueError(f"smallest_log2_p contradicts the count at p = {row.p}")
        return self

    def alarm(self) -> str | None:
        """Why this entry is no valid control, in words: more pairs below a threshold than an exact test allows."""
        for row in self.exceedances:
            if row.count and log2_binomial_tail(row.count, self.pairs, row.p) <= LOG2_ALARM:
                expected = row.p * self.pairs
                return f"{row.count} of {self.pairs} unmarked (model, key) pairs pass p = {row.p:g}, {expected:.3g} are expected"
        return None


class NullTable(Strict):
    """
    A table of one backbone and data set.

    Args:
        models (`int`):
            Independently trained, unmarked models.
        keys (`int`):
            Fresh keys tried on each.
    """

    schema_: Annotated[Literal["hf-watermark/null-table/v1"], Field(alias="schema")]
    backbone: Text
    data: Text
    models: Annotated[int, Field(ge=1, le=10**6)]
    keys: Annotated[int, Field(ge=1, le=10**9)]
    library_version: Slug
    hardware: Text
    entries: Annotated[list[NullEntry], Field(min_length=1, max_length=64)]

    @model_validator(mode="after")
    def _pairs(self) -> "NullTable":
        for entry in self.entries:
            if entry.pairs != self.models * self.keys:
                raise ValueError(
                    f"{entry.method}: {entry.pairs} pairs are not {self.models} models x {self.keys} keys"
                )
        if len({entry.method for entry in self.entries}) != len(self.entries):
            raise ValueError("a method is listed twice")
        return self

    def entry(self, method: str) -> NullEntry | None:
        return next((entry for entry in self.entries if entry.method == method), None)


def entry_of(method: str, config: dict[str, Any], log2_ps: Sequence[float], rates: Sequence[float]) -> NullEntry:
    """
    The entry of a method from the p-values and match rates of all (null model, key) pairs.
    """
    exceedances = [{"p": p, "count": sum(value <= math.log2(p) for value in log2_ps)} for p in THRESHOLDS]
    fields = {
        "method": method,
        "config": config,
        "pairs": len(log2_ps),
        "exceedances": exceedances,
        "smallest_log2_p": min(0.0, *log2_ps) if log2_ps else 0.0,
        "mean_rate": round(sum(rates) / max(1, len(rates)), 6),
    }
    return validated(NullEntry, fields, "null table")


def read_null_table(path: str | Path) -> NullTable:
    """
    Raises:
        [`~serialization.InvalidInput`]: when the file is missing, too large, or no null table; the message names the field.
    """
    return validated(NullTable, read_json(path, TABLE_BYTES, allow_floats=True), str(path))


def write_null_table(table: NullTable, path: str | Path, overwrite: bool = False) -> None:
    write_json_atomic(path, table.plain(), overwrite=overwrite)


def shipped_null_tables() -> dict[str, NullTable]:
    """Tables that come with the package, by name."""
    folder = files("hf_watermark.verification") / SHIPPED
    if not folder.is_dir():
        return {}
    return {
        item.name.removesuffix(".json"): validated(
            NullTable, parse_json(item.read_bytes(), TABLE_BYTES, allow_floats=True), item.name
        )
        for item in sorted(folder.iterdir(), key=lambda item: item.name)
        if item.name.endswith(".json")
    }


def find_null_table(name: str) -> NullTable:
    """A file, or the name of a shipped table."""
    if Path(name).exists():
        return read_null_table(name)
    shipped = shipped_null_tables()
    if name not in shipped:
        raise InvalidInput(
            f"{name}: no such file, and no shipped null table; there are: {', '.join(shipped) or 'none'}"
        )
    return shipped[name]


def with_null_control(evidence: Evidence, table: NullTable, configs: dict[str, dict[str, Any]]) -> Evidence:
    """
    Adds the table to the controls of each method and decides again. p- and e-values stay as they are; a verdict can only become weaker.

    Args:
        evidence ([`Evidence`]):
            What [`verify`] gave.
        configs (`dict`):
            The key's config of each method: an entry for another config is named, and no control.
    """
    for part in evidence.by_method.values() if evidence.trials else []:
        entry = table.entry(part.method)
        if entry is None:
            part.warnings = [*part.warnings, f"the null table has no entry for {part.method}"]
            continue
        if entry.config != configs.get(part.method):
            part.warnings = [*part.warnings, f"the null table was made with another config of {part.method}"]
            continue
        part.controls["null_models"] = null_control(table, entry)
        alarm = entry.alarm()
        if alarm is not None:
            part.controls.setdefault("failed", alarm)
            evidence.controls.setdefault("failed", alarm)
            part.decide()
    return evidence.decide()


def null_control(table: NullTable, entry: NullEntry) -> dict[str, Any]:
    """The control as JSON for reports."""
    return {
        "backbone": table.backbone,
        "data": table.data,
        "models": table.models,
        "pairs": entry.pairs,
        "smallest_log2_p": entry.smallest_log2_p,
        "shares": {f"{row.p:g}": row.count / entry.pairs for row in entry.exceedances},
    }
