"""`hf-watermark certify`."""

import dataclasses
import json as json_format
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..serialization import InvalidInput
from .errors import FOUND, NOT_FOUND
from .loading import PREPROCESSOR, load_model, silence_loading
from .passphrase import PassphraseFd, PassphraseFile, open_secret, read_passphrase
from .progress import begin


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..attacks import Attack
    from ..keys import Claim, WatermarkKey
    from ..methods.certified import Certificate, CertifiedVerifier

EXAMPLE = "Example:\n\nhf-watermark certify my-model --key keys/my-model --radii 0.2,0.5,1.0 --plot certificate.png"
METHOD = "certified"
# Shares of the rate given with --learning-rate.
RATES = (0.01, 0.1, 1.0)


def certify(
    model: Annotated[Path, typer.Argument(help="Folder of your own marked model.")],
    key: Annotated[Path, typer.Option("--key", metavar="DIR", help="The key folder it was marked under.")],
    radii: Annotated[
        str | None,
        typer.Option("--radii", metavar="R,R,...", help="Radii in units of the key's sigma; 0.2 to 2.0 by default."),
    ] = None,
    confidence: Annotated[
        float, typer.Option("--confidence", help="Of all radii and the sampling of a suspect's check together.")
    ] = 0.99,
    draws: Annotated[
        int | None, typer.Option("--draws", min=1, help="Noise draws; what the key's config says by default.")
    ] = None,
    at_least: Annotated[
        float | None,
        typer.Option("--at-least", metavar="SHARE", help="Ask only whether this accuracy holds, which is quicker."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="PATH", help="Also compare with fine-tuning on these images; as in hf-watermark attack."
        ),
    ] = None,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", help="Fine-tune (AdamW) at 0.01, 0.1 and 1 times this rate.")
    ] = 1e-3,
    epochs: Annotated[float, typer.Option("--epochs", help="Epochs of each fine-tuning.")] = 1,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=1, help="Height and width of images from --data.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the certificate as JSON and nothing else.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Also draw the certificate into this new file.")
    ] = None,
    passphrase_fd: PassphraseFd = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """
    State how far the weights of your marked model may move before its mark can be lost, and how far real attacks move them.

    Exit status: 0 certified at some radius, 1 at none, 2 bad usage or unreadable input.
    """
    begin(f"Certifying {model}")
    if plot is not None:
        refuse_plot(plot)
        from ..evaluation import drawing  # noqa: F401
    asked = None if radii is None else read_radii(radii)
    passphrase = read_passphrase(passphrase_fd, passphrase_file)

    from ..methods.certified import RADII, CertifiedVerifier
    from ..methods.certified import certify as make_certificate

    silence_loading()
    opened = open_secret(lambda secret: _load_key(key, secret), passphrase)
    claim = certified_claim(opened, key)
    verifier = CertifiedVerifier(claim)
    loaded = load_model(model)
    images = None
    if data is not None:
        from .data import load_images

        images = load_images(data, loaded, model / PREPROCESSOR, image_size, loaded.config.num_labels)
    attacks = build_attacks(images is not None, learning_rate, epochs)
    certificate = make_certificate(
        claim, loaded, asked or RADII, confidence, draws, at_least, progress=sys.stderr.isatty()
    )
    # After the draws, which check every argument, and one at a time, so that only one attacked copy is in memory.
    distances = measure_attacks(verifier, loaded, attacks, images)
    certificate = dataclasses.replace(certificate, attack_distances=distances)
    if plot is not None:
        from ..evaluation.certificate_plot import write_certificate_plot

        write_certificate_plot(certificate, plot)
    if json:
        typer.echo(as_json(certificate))
    else:
        show_certificate(certificate, opened)
    raise typer.Exit(FOUND if certificate.certified else NOT_FOUND)


# Input


def refuse_plot(plot: Path) -> None:
    """Checked before the work, not after it."""
    if plot.suffix.lower() != ".png":
        raise InvalidInput(f"{plot}: the plot is a PNG; choose a name that ends in .png for --plot")
    if os.path.lexists(plot):
        raise FileExistsError(f"{plot} exists and is left as it is; choose another --plot")
    if not plot.parent.is_dir():
        raise InvalidInput(f"{plot}: its folder does not exist; create it or choose another --plot")


def read_radii(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise InvalidInput(
            f"--radii {text!r}: write numbers in units of sigma, separated by commas, for example 0.2,0.5,1.0"
        ) from None


def certified_claim(key: "WatermarkKey", folder: Path) -> "Claim":
    claims = {claim.assignment.method: claim for claim in key.claims()}
    if METHOD not in claims:
        raise InvalidInput(
            f"{folder}: this key marks with {', '.join(claims) or 'no method'}; only the method {METHOD!r} can be certified"
        )
    return claims[METHOD]


def _load_key(folder: Path, passphrase: str | None) -> "WatermarkKey":
    from ..keys import WatermarkKey

    return WatermarkKey.load(folder, passphrase)


# Attacks


def build_attacks(with_data: bool, learning_rate: float, epochs: float) -> dict[str, "Attack"]:
    """What the radius is compared with, by label. Built before the work, so that a bad rate is refused at once."""
    from ..attacks import FineTune, Int8Quantize, MagnitudePrune, UniformQuantize

    attacks: dict[str, Attack] = {
        "int8 weights": Int8Quantize(),
        "8-bit weights": UniformQuantize(8),
        "4-bit weights": UniformQuantize(4),
        "prune 10 %": MagnitudePrune(0.1),
        "prune 50 %": MagnitudePrune(0.5),
    }
    if with_data:
        for share in RATES:
            rate = share * learning_rate
            attacks[f"fine-tune, rate {rate:g}"] = FineTune(learning_rate=rate, epochs=epochs, optimizer="adamw")
    return attacks


def measure_attacks(
    verifier: "CertifiedVerifier", model: "PreTrainedModel", attacks: dict[str, "Attack"], images: Any
) -> dict[str, float]:
    """
    How far each attack moves the weights, in units of sigma; infinite where it moves what the certificate holds fixed. An attack that
    this model does not allow is left out with a warning: the certificate does not depend on it.
    """
    from ..attacks import NotApplicableError
    from ..methods.certified import attack_distances

    distances: dict[str, float] = {}
    for label, attack in attacks.items():
        try:
            with Console(stderr=True).status(f"Attack: {label} ..."):
                distances |= attack_distances(verifier, model, {label: attack(model, images)})
        except (NotApplicableError, FloatingPointError) as error:
            warn(f"{label} was left out: {error}")
    return distances


# Output


def as_json(certificate: "Certificate") -> str:
    return json_format.dumps(certificate.to_dict(), indent=2, sort_keys=True, allow_nan=False)


def show_certificate(certificate: "Certificate", key: "WatermarkKey") -> None:
    """The curve, the attacks beside it, what the certificate says in words, and what it does not say."""
    from ..evidence import LEVEL_B, LEVEL_N
    from ..keys import NO_BEACON

    console = Console()
    console.print(curve_table(certificate))
    if certificate.attack_distances:
        console.print(attack_table(certificate))
    console.print(
        Text(
            f"sigma {certificate.sigma:g} ({certificate.relative_sigma:.3f} of the weights' size); distance: {certificate.norm}; "
            f"what may move: {certificate.moves}"
        )
    )
    if certificate.certified:
        console.print(
            Text("certified: ", style="bold green").append(
                f"with confidence {certificate.confidence:g} every net within {certificate.radius:g} sigma that was fixed before a "
                f"check's noise is known reaches level B ({LEVEL_B:.0f} bits) in the smoothed test",
                style="default",
            )
        )
    else:
        reason = f"at no radius asked for does the smoothed test surely reach level B ({LEVEL_B:.0f} bits)"
        console.print(Text("not certified: ", style="bold red").append(reason, style="default"))
    for limit in certificate.limits:
        console.print(Text(f"note: {limit}", style="dim"))
    if key.beacon == NO_BEACON:
        warn(f"this key is bound to no beacon, so a claim needs level N ({LEVEL_N:.0f} bits); compare log2 p with it")


def curve_table(certificate: "Certificate") -> Table:
    several = len(certificate.curves) > 1
    names = ["radius (sigma)", "distance", "accuracy", "matches", "log2 p", "level B", "draws"]
    table = Table(*(["sub-key"] if several else []), *names, title="Certified trigger accuracy", title_justify="left")
    for index, curve in certificate.curves.items():
        for row in curve:
            accuracy, matches = "none", "none"
            if row.matches is not None:
                accuracy, matches = f"{100 * (row.accuracy or 0):.1f} %", f"{row.matches}/{certificate.triggers}"
            level = "yes" if row.certified else "no"
            numbers = [f"{row.radius:g}", f"{row.distance:.4g}", accuracy, matches, f"{row.log2_p:.1f}", level]
            table.add_row(*([str(index)] if several else []), *numbers, str(row.draws))
    return table


def attack_table(certificate: "Certificate") -> Table:
    inside = f"inside {certificate.radius:g} sigma" if certificate.certified else "inside"
    table = Table("attack", "distance (sigma)", inside, title="How far attacks move the weights", title_justify="left")
    for label, distance in sorted(certificate.attack_distances.items(), key=lambda item: item[1]):
        moved = f"{distance:.3g}" if math.isfinite(distance) else "moves what is held fixed"
        table.add_row(label, moved, "yes" if distance <= certificate.radius else "no")
    return table


def warn(message: str) -> None:
    Console(stderr=True).print(Text(f"warning: {message}", style="yellow"), soft_wrap=True)
