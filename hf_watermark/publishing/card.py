"""The model card: a Watermark section, metadata and model-index, added to whatever the card says already."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..attacks.outcome import RUINED, ruined_rows
from ..serialization import InvalidInput
from .parts import Fidelity, Survival
from .statement import STATEMENT, SignedStatement, Statement


TAG = "hf-watermark"
NO_LICENSE = "the card names no license, so nobody knows what they may do with the model; give --license (`license=`), or write it into README.md"
_LICENSE = re.compile(r"[A-Za-z0-9.+-]{1,64}")
_TASKS = {
    "ForImageClassification": "image-classification",
    "ForSemanticSegmentation": "image-segmentation",
    "ForInstanceSegmentation": "image-segmentation",
    "ForUniversalSegmentation": "image-segmentation",
    "ForImageSegmentation": "image-segmentation",
}
BEGIN, END = "<!-- hf-watermark:begin -->", "<!-- hf-watermark:end -->"
TEMPLATES = Path(__file__).parent / "templates"
# What a name from outside could use to become markup in a table.
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|<>~])")


def with_metadata(text: str, config: Mapping[str, Any], license: str | None = None) -> tuple[str, list[str]]:
    """
    A card that says with which library the model loads, what it does, and on which terms. What the card says already stays, except that
    `license` goes first.

    Args:
        config (`Mapping`): The model's `config.json`.
        license (`str`, *optional*): An identifier of the Hub, such as `apache-2.0`.

    Returns:
        `tuple[str, list[str]]`: The card, and warnings.

    Raises:
        [`~serialization.InvalidInput`]: when `license` is no identifier, or the front matter is broken.
    """
    if license is not None and not _LICENSE.fullmatch(license):
        raise InvalidInput(f"license {license[:80]!r} is no identifier such as 'apache-2.0' or 'other'")
    card = _load(text)
    card.data.library_name = card.data.get("library_name") or library_of(config)
    card.data.pipeline_tag = card.data.get("pipeline_tag") or task_of(config)
    card.data.license = license or card.data.get("license")
    return str(card), [] if card.data.license else [NO_LICENSE]


def library_of(config: Mapping[str, Any]) -> str | None:
    """`transformers` writes a `model_type` into every config, also into that of a wrapped timm model; timm names an architecture only."""
    if config.get("model_type") or config.get("architectures"):
        return "transformers"
    return "timm" if config.get("architecture") else None


def task_of(config: Mapping[str, Any]) -> str | None:
    """The Hub's name of what a model does, by the class that its config names; a timm model with classes is a classifier."""
    classes = config.get("architectures")
    for name in classes if isinstance(classes, list) else []:
        for ending, task in _TASKS.items():
            if str(name).endswith(ending):
                return task
    return "image-classification" if library_of(config) == "timm" and config.get("num_classes") else None


def watermark_card(
    signed: SignedStatement, existing: str | None, stamps: list[str] | None = None, cost: str | None = None
) -> str:
    """
    A card with the Watermark section of a statement.

    Args:
        existing (`str`, *optional*):
            The card as it is. Its text, tags and results stay; an older Watermark section is replaced in its place.
        stamps (`list[str]`, *optional*):
            What to say about timestamps.
        cost (`str`, *optional*):
            What the mark costs, as [`~publishing.cost.cost_line`] says it.

    Raises:
        [`~serialization.InvalidInput`]: when the front matter of the existing card is broken.
    """
    statement = signed.statement
    section = render_section(signed, stamps or [], cost)
    text = existing if existing is not None and existing.strip() else f"# {statement.model_id.split('/')[-1]}\n"
    card = _load(text)
    card.text = _with_section(card.text, section)
    card.data.tags = merged_tags(card.data.tags, [TAG, "watermark"])
    card.data["watermark"] = {
        "statement": STATEMENT,
        "methods": [method.name for method in statement.methods],
        "owner": statement.fingerprint,
        "level": statement.level,
    }
    if statement.fidelity is not None:
        _add_result(card.data, statement.fidelity, statement.model_id)
    return str(card)


def render_section(signed: SignedStatement, stamps: list[str], cost: str | None = None) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"words": escape, "percent": percent}
    template = environment.get_template("watermark.md.jinja")
    return template.render(
        statement=signed.statement,
        survival=survival_lines(signed.statement),
        stamps=", ".join(stamps),
        cost=cost,
        begin=BEGIN,
        end=END,
    ).strip()


def survival_lines(statement: Statement) -> list[tuple[Survival, str]]:
    """The survival table with what a reader should take from each row: a mark in a ruined model is no merit of it."""
    shares = [None if row.accuracy_bp is None else row.accuracy_bp / 10_000 for row in statement.survival]
    fidelity = statement.fidelity
    ruined = ruined_rows(shares, fidelity.marked_bp / 10_000 if fidelity and fidelity.metric == "accuracy" else None)
    return [(row, RUINED if lost else str(row.verdict)) for row, lost in zip(statement.survival, ruined, strict=True)]


def without_section(text: str) -> str:
    """A card's text without the section: a model that lost its statement must not keep the claim."""
    return re.sub(rf"\n*{re.escape(BEGIN)}.*?{re.escape(END)}\n*", "\n\n", text, flags=re.DOTALL)


def merged_tags(*lists: list[str] | str | None) -> list[str]:
    """All tags in their order, each once."""
    tags: list[str] = []
    for several in lists:
        tags += [several] if isinstance(several, str) else several or []
    return list(dict.fromkeys(tags))


def add_tags(text: str, tags: list[str]) -> str:
    card = _load(text)
    card.data.tags = merged_tags(card.data.tags, tags)
    return str(card)


def tags_of(text: str | None) -> list[str]:
    return [] if text is None else merged_tags(_load(text).data.tags)


def escape(text: str) -> str:
    """Text from outside as plain words in a Markdown table."""
    return _MARKUP.sub(r"\\\1", text).replace("<", "&lt;")


def percent(basis_points: int | None) -> str:
    return "n/a" if basis_points is None else f"{basis_points / 100:.2f} %"


def _load(text: str) -> Any:
    # Without front matter huggingface_hub would write a warning into the log.
    text = text if text.lstrip().startswith("---") else f"---\n{{}}\n---\n{text}"
    try:
        return ModelCard(text)
    except Exception as error:  # yaml and huggingface_hub raise several kinds
        line = " ".join(str(error).split())[:200]
        raise InvalidInput(
            f"README.md: its front matter cannot be read ({line}); repair it and publish again"
        ) from None


def _with_section(text: str, section: str) -> str:
    old = re.compile(rf"{re.escape(BEGIN)}.*?{re.escape(END)}", flags=re.DOTALL)
    if old.search(text):
        return old.sub(lambda _: section, text, count=1)
    return f"{text.rstrip()}\n\n{section}\n"


def _add_result(data: ModelCardData, fidelity: Fidelity, model_id: str) -> None:
    """The marked model's metric in the model-index; an older value of the same metric and data set is replaced."""
    result = EvalResult(
        task_type=data.get("pipeline_tag") or "image-classification",
        dataset_type=fidelity.dataset,
        dataset_name=fidelity.dataset,
        dataset_split=fidelity.split,
        metric_type=fidelity.metric,
        metric_value=fidelity.marked_bp / 10_000,
        metric_name=fidelity.metric,
    )
    same = (result.dataset_type, result.dataset_split, result.metric_type)
    kept = [old for old in data.eval_results or [] if (old.dataset_type, old.dataset_split, old.metric_type) != same]
    data.eval_results = [*kept, result]
    data.model_name = data.get("model_name") or model_id.split("/")[-1]


__all__ = [
    "BEGIN",
    "END",
    "TAG",
    "add_tags",
    "merged_tags",
    "tags_of",
    "watermark_card",
    "with_metadata",
    "without_section",
]
