"""The model card: a Watermark section, metadata and model-index, added to whatever the card says already."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..serialization import InvalidInput
from .parts import Fidelity
from .statement import STATEMENT, SignedStatement


TAG = "hf-watermark"
BEGIN, END = "<!-- hf-watermark:begin -->", "<!-- hf-watermark:end -->"
TEMPLATES = Path(__file__).parent / "templates"
# What a name from outside could use to become markup in a table.
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|<>~])")


def watermark_card(signed: SignedStatement, existing: str | None, stamps: list[str] | None = None) -> str:
    """
    A card with the Watermark section of a statement.

    Args:
        existing (`str`, *optional*):
            The card as it is. Its text, tags and results stay; an older Watermark section is replaced in its place.
        stamps (`list[str]`, *optional*):
            What to say about timestamps.

    Raises:
        [`~serialization.InvalidInput`]: when the front matter of the existing card is broken.
    """
    statement = signed.statement
    section = render_section(signed, stamps or [])
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


def render_section(signed: SignedStatement, stamps: list[str]) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"words": escape, "percent": percent}
    template = environment.get_template("watermark.md.jinja")
    return template.render(statement=signed.statement, stamps=", ".join(stamps), begin=BEGIN, end=END).strip()


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


__all__ = ["BEGIN", "END", "TAG", "add_tags", "merged_tags", "tags_of", "watermark_card", "without_section"]
