"""`hf-watermark plan`."""

import json as json_format
import math
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..serialization import InvalidInput
from .loading import silence_loading
from .options import JsonOption
from .progress import begin


EXAMPLE = (
    "Examples:\n\nhf-watermark plan --method greedy_residuals --backbone small_resnet --target-p 1e-9 --rate 0.8\n\n"
    "hf-watermark plan --scan 2500000 --keys 50 --workers 16"
)


def plan(
    method: Annotated[str | None, typer.Option("--method", help="A method; see hf-watermark methods.")] = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", help="A preset of the benchmark, or timm:ARCHITECTURE.")
    ] = None,
    target_p: Annotated[float, typer.Option("--target-p", help="p-value to reach after the attack.")] = 2.0**-64,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0, max=1, help="Share of bits, rules or triggers that survives.")
    ] = None,
    after: Annotated[
        str | None, typer.Option("--after", metavar="ATTACK", help="Take the worst measured share after this attack.")
    ] = None,
    classes: Annotated[int, typer.Option("--classes", min=2, help="Labels of the model.")] = 10,
    power: Annotated[float, typer.Option("--power", help="Chance to reach the p-value at this rate.")] = 0.95,
    looks: Annotated[int, typer.Option("--looks", min=1, help="Looks that will be charged.")] = 1,
    scan: Annotated[
        int | None, typer.Option("--scan", metavar="REPOS", min=1, help="Plan a scan of so many repositories.")
    ] = None,
    keys: Annotated[int, typer.Option("--keys", min=1, help="For --scan: keys looked for.")] = 1,
    workers: Annotated[int, typer.Option("--workers", min=1, help="For --scan: cores.")] = 16,
    addresses: Annotated[int, typer.Option("--addresses", min=1, help="For --scan: machines with an address.")] = 1,
    requests_per_second: Annotated[
        float, typer.Option("--requests-per-second", min=0.001, help="For --scan: per address.")
    ] = 10.0,
    matching: Annotated[
        float, typer.Option("--matching", min=0, max=1, help="For --scan: share of repositories that fit a key.")
    ] = 0.02,
    keys_each: Annotated[
        float, typer.Option("--keys-each", min=1, help="For --scan: keys that fit such a repository.")
    ] = 1.0,
    alarms: Annotated[
        float, typer.Option("--alarms", help="For --scan: expected number of false alarms of all looks ever, at most.")
    ] = 0.01,
    json: JsonOption = False,
) -> None:
    """
    Say how many bits, triggers and queries a claim needs, what they cost in fidelity, or what a scan of the Hub costs. Nothing is trained.

    p-values are exact. Fidelity and survival come from this project's own measurements, and other models will differ.
    """
    if (method is None) == (scan is None):
        raise InvalidInput("give exactly one of --method NAME and --scan REPOS")
    begin("Planning")
    silence_loading()
    if scan is not None:
        from ..watch.forecast import forecast, with_measured_costs

        inputs = with_measured_costs(
            repos=scan,
            keys=keys,
            keys_each=min(keys_each, keys),
            workers=workers,
            addresses=addresses,
            requests_per_second=requests_per_second,
            matching=matching,
            budget=alarms,
        )
        document = forecast(inputs)
        typer.echo(json_format.dumps(document, indent=2)) if json else show_scan(document)
        return
    assert method is not None

    from ..evaluation.planning import expected_rate, plan_document, plan_mark

    share, origin = expected_rate(method, after, rate)
    found = plan_mark(method, target_p, share, classes, power, looks)
    capacity = None if backbone is None else capacity_on(method, backbone, classes, found.units)
    document = plan_document(found, target_p, origin, capacity)
    typer.echo(json_format.dumps(document, indent=2)) if json else show_plan(document)


def capacity_on(method: str, backbone: str, classes: int, bits: int) -> dict[str, Any] | None:
    from ..evaluation.matrix.backbones import build_backbone
    from ..evaluation.matrix.config import BackboneSpec
    from ..evaluation.planning import capacity_of

    kind, separator, name = backbone.partition(":")
    if separator and kind != "timm":
        raise InvalidInput(f"--backbone {backbone!r}: write a preset, or timm:ARCHITECTURE")
    spec = BackboneSpec(timm=name) if separator else BackboneSpec(preset=backbone)
    return capacity_of(method, build_backbone(spec, classes, (3, 32, 32), 0), bits)


def show_plan(document: dict[str, Any]) -> None:
    found = document["plan"]
    typer.echo(
        f"{found['method']}: {found['units']} {found['unit']} per sub-key, {found['needed']} of them have to match"
    )
    typer.echo(
        f"at a match rate of {found['rate']:.3f} ({document['rate_from']}) they do with probability {found['power']:.3f}; "
        f"log2 p is then {found['log2_p']:.1f}"
    )
    typer.echo(f"the null: {found['assumption']}; units are taken to survive independently")
    fields = ", ".join(f"{name}={value}" for name, value in found["fields"].items())
    queries = (
        f"; a verifier asks {found['queries']} images" if found["queries"] else "; weights are read, nothing is asked"
    )
    typer.echo(f"config: {fields}{queries}")
    capacity = document["capacity"]
    if capacity is not None:
        typer.echo(
            f"this backbone ({capacity['parameters']} parameters) holds at most {capacity['most_bits']} bits in one sub-key; by default "
            f"{capacity['subkeys']} sub-keys of {found['units']} bits are embedded"
        )
    if not document["fidelity"]:
        typer.echo("fidelity: nothing measured ships with this version")
        return
    table = Table("methods", "data", "backbone", "seeds", "fidelity (points)", "± 95 %", title="measured fidelity")
    for row in document["fidelity"]:
        width = "" if row["half_width_95"] is None else f"{row['half_width_95']:.2f}"
        words = [" + ".join(row["methods"]), row["data"], row["backbone"], str(row["seeds"])]
        table.add_row(*words, f"{row['fidelity_points']:+.2f}", width)
    Console().print(table)


def show_scan(document: dict[str, Any]) -> None:
    table = Table("stage", "requests", "bytes", "core hours", "hours", "limited by")
    for stage in document["stages"]:
        numbers = [
            f"{stage['requests']:,.0f}",
            size(stage["bytes"]),
            f"{stage['core_hours']:,.1f}",
            f"{stage['hours']:,.2f}",
        ]
        table.add_row(stage["stage"], *numbers, stage["limited_by"])
    total = document["total"]
    table.add_row(
        "total",
        f"{total['requests']:,.0f}",
        size(total["bytes"]),
        f"{total['core_hours']:,.1f}",
        f"{total['hours']:,.2f}",
        "",
    )
    console = Console()
    console.print(table)
    for name, expected in document["false_alarms"].items():
        console.print(f"false alarms {name}: {expected:.3g}")
    bits = math.log2(document["last_look_needs_p"])
    console.print(f"{document['looks']:,.0f} looks; the last one alarms at log2 p <= {bits:.1f}")
    said = document["inputs"]
    inputs = ", ".join(f"{name}={value:g}" for name, value in said.items() if name != "measured")
    console.print(f"inputs: {inputs}")
    console.print(f"costs: measured over {said['measured']}; the share that fits a key is an assumption")


def size(count: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"
