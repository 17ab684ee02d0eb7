"""`hf-watermark survival`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..serialization import InvalidInput, write_json_atomic
from .errors import FOUND, NOT_FOUND
from .loading import PREPROCESSOR, load_model, silence_loading
from .options import refuse_output
from .passphrase import PassphraseFd, PassphraseFile, read_passphrase
from .progress import begin
from .secrets import KeyOption, load_key


EXAMPLE = (
    "Example:\n\nhf-watermark survival my-model --key keys/my-model --data digits --learning-rate 0.004 "
    "--output survival.json"
)


def survival(
    model: Annotated[Path, typer.Argument(help="Folder of your own marked model.")],
    key: KeyOption,
    output: Annotated[
        Path, typer.Option("--output", metavar="FILE.json", help="New file for hf-watermark publish --survival.")
    ] = Path("survival.json"),
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="PATH", help="The attacker's images; as in hf-watermark attack."),
    ] = None,
    test_data: Annotated[
        str | None,
        typer.Option(
            "--test-data", metavar="PATH", help="Images for the accuracy, never trained on. Digits bring their own."
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", min=0, help="What the model was trained with (AdamW); needed with --data."),
    ] = None,
    epochs: Annotated[
        float, typer.Option("--epochs", min=0, help="Of each fine-tuning; distillation takes 3 times.")
    ] = 1,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=1, help="Height and width of images from --data.")
    ] = None,
    passphrase_fd: PassphraseFd = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """
    Run a fixed, quick battery of removal attacks on your marked model, and print the survival table of its card.

    Exit status: 0 table written, 1 the mark was not found before any attack, 2 bad usage or unreadable input.
    """
    begin(f"Attacking copies of {model}")
    refuse_output(output)
    if data is not None and not learning_rate:
        raise InvalidInput("give --learning-rate with --data: the rate that the model was trained with")
    passphrase = read_passphrase(passphrase_fd, passphrase_file)

    from ..evaluation.quick_battery import quick_battery, survival_document, survival_markdown
    from ..verifying import verify

    silence_loading()
    opened, _ = load_key(key, passphrase)
    loaded = load_model(model)
    before = verify(loaded, opened)
    if not before.found:
        typer.echo(f"nothing to attack: {before.verdict}: {before.reason}", err=True)
        raise typer.Exit(NOT_FOUND)
    images = load_part(data, loaded, model, image_size)
    if test_data is None and data == "digits":
        from ..evaluation.digits import load_digits_data

        tests: Any = load_digits_data("test")
    else:
        tests = load_part(test_data, loaded, model, image_size)
    battery = quick_battery(learning_rate if data else None, epochs)
    document = survival_document(
        loaded, opened, battery, images, tests, lambda row: typer.echo(f"{row['attack']}: {row['verdict']}", err=True)
    )
    write_json_atomic(output, document, overwrite=False)
    typer.echo(survival_markdown(document["rows"]), nl=False)
    typer.echo(f"wrote {output}", err=True)
    raise typer.Exit(FOUND)


def load_part(source: str | None, model: Any, folder: Path, image_size: int | None) -> Any:
    if source is None:
        return None
    from .data import load_images

    return load_images(source, model, folder / PREPROCESSOR, image_size, model.config.num_labels)
