"""`hf-watermark attack`."""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ..attacks.table import ATTACKS, ENTRIES, make_attack
from ..serialization import InvalidInput
from .loading import PREPROCESSOR, load_model
from .progress import begin


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..attacks import Attack

EXAMPLE = (
    "Example:\n\nhf-watermark attack finetune my-model --output attacked --data digits --option learning_rate=0.01"
)


class AttackCommand(TyperCommand):
    """Lists the attacks in its help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        lines = [f"{name}: {entry.help}" for name, entry in ENTRIES.items()]
        self.help = "\n\n".join([str(self.help), "Attacks:", *lines])
        super().format_help(ctx, formatter)


def attack(
    name: Annotated[str, typer.Argument(help="Name of the attack.")],
    model: Annotated[Path, typer.Argument(help="Folder of a transformers image-classification model of your own.")],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="New folder for the attacked model.")],
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="An option of the attack; may be repeated."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="PATH",
            help="The attacker's images: 'digits', a parquet file or folder, or a folder with one folder per class.",
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=1, help="Height and width of images from --data.")
    ] = None,
) -> None:
    """Try to remove a mark: run one attack on a model and save the result. The original is not changed."""
    begin(f"Attacking a copy of {model}")
    refuse_existing(output)
    chosen = build_attack(name, option or [])
    if chosen.needs_data and data is None:
        raise InvalidInput(f"the attack {name!r} needs images; give --data digits or --data PATH")
    loaded = load_model(model)
    images = None
    if data is not None:
        from .data import load_images

        images = load_images(data, loaded, model / PREPROCESSOR, image_size, labels_for(chosen, loaded))
    attacked = chosen(loaded, images)
    attacked.save_pretrained(output)
    if (model / PREPROCESSOR).exists():
        shutil.copyfile(model / PREPROCESSOR, output / PREPROCESSOR)
    typer.echo(f"wrote {output}: {model} after {chosen}")


def refuse_existing(output: Path, option: str = "--output") -> None:
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists():
        raise FileExistsError(f"{output} exists and is left as it is; choose a new folder for {option}")


def build_attack(name: str, options: list[str]) -> "Attack":
    """The attack with options given as `key=value`, each converted to the type of its field."""
    known = {field.name: field.type for field in dataclasses.fields(ATTACKS[name])} if name in ATTACKS else {}
    values: dict[str, Any] = {}
    for text in options:
        field, separator, value = text.partition("=")
        if not separator or field in values:
            raise InvalidInput(f"--option {text!r}: write key=value, each key once")
        # Unknown names and fields are left to `make_attack`, whose message lists the known ones.
        values[field] = _convert(text, value, known[field]) if field in known else value
    if "progress" in known and sys.stderr.isatty():
        values.setdefault("progress", True)
    return make_attack(name, **values)


def _convert(text: str, value: str, kind: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    try:
        # An option may also be a model or a data set; as text it is then a path.
        return TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).validate_strings(value)
    except ValidationError as error:
        raise InvalidInput(f"--option {text!r}: {error.errors()[0]['msg']}") from None


def labels_for(chosen: "Attack", model: "PreTrainedModel") -> int | None:
    """How many labels the data may have; `None` where the attack does not read them or makes its own."""
    from ..attacks import Transfer

    if isinstance(chosen, Transfer):
        return chosen.num_labels
    return model.config.num_labels if chosen.reads_labels else None
