"""Tables of certified marks, and of the two methods that digits and CIFAR-10 runs put into one model."""

from collections.abc import Iterator
from typing import Any

from table_section import CIFAR, RESULTS, Section, bits, percent, plain, points, read


# Greedy residuals and function-coupled


def stacked_digits() -> Section:
    rows = [
        [str(row["seed"]), plain(method), str(part["matches"]), str(part["trials"]), bits(part["log2_p"])]
        for row in read("digits")["seeds"]
        for method, part in row["methods"].items()
    ]
    columns = ["=seed", "method", "=matches", "=of", "=evidence (bits)"]
    about = "Both methods in one model on handwritten digits, before any attack."
    command = "python examples/benchmarks/digits.py --output runs/digits.json"
    return Section("Strength on digits", about, command, columns, rows)


def stacked_cifar10() -> Section:
    rows = []
    for path in sorted(RESULTS.glob("cifar10_*.json")):
        record = read(path.stem)
        seed, names = str(record["options"]["seed"]), record["marked"]["methods"]
        for method, part in names.items():
            others = [plain(name) for name in names if name != method] or ["alone"]
            numbers = (str(part["matches"]), str(part["trials"]), bits(part["log2_p"]), points(record["fidelity"]))
            rows.append([seed, plain(method), *others, *numbers])
    columns = ["=seed", "method", "beside", "=matches", "=of", "=evidence (bits)", "=accuracy (points)"]
    about = (
        "Eight epochs on CIFAR-10, fresh keys in each row, before any attack, with a sixteenth of triggers: too few for function-coupled "
        "rules here, which the matrix gives four times as many."
    )
    command = (
        "python examples/benchmarks/cifar10.py --data FOLDER --seed 0 --output runs/cifar10.json\n"
        "python examples/benchmarks/cifar10.py --data FOLDER --seed 0 --methods greedy_residuals --attacks --output runs/cifar10_greedy.json"
    )
    return Section("Strength on CIFAR-10", about, command, columns, rows)


def choice_function_coupled() -> Section:
    record = read("choice_function_coupled")
    rows = []
    for item in record["settings"]:
        setting = ", ".join(f"{plain(name)} {value}" for name, value in item["setting"].items())
        strength = (bits(item["mean log2_p"]), bits(item["mean attacked log2_p"]))
        rows.append([setting, points(-item["mean loss"]), *strength, str(len(item["seeds"]))])
    columns = ["setting", "=accuracy (points)", "=evidence (bits)", "=after the attack (bits)", "=seeds"]
    about = (
        "Settings tried on training images held out, by a rule written down before. The matrix runs the chosen one."
    )
    command = "python examples/benchmarks/choose_function_coupled.py --data FOLDER --output runs/choice.json"
    return Section("How many triggers", about, command, columns, rows)


# Certified


def certified_records() -> Iterator[tuple[str, str, Any]]:
    for path in sorted(RESULTS.glob("certified_*_seed*.json")):
        record = read(path.stem)
        yield record["options"]["task"], str(record["options"]["seed"]), record


def certified_commands(section: str = "certificate") -> str:
    """One for each file that has this section."""
    lines = []
    for task, seed, record in certified_records():
        if section in record:
            data = "--task digits" if task == "digits" else CIFAR
            given = f"--seed {seed} --config '{{\"sigma\": {record['config']['sigma']}}}'"
            attacks = (
                f"--attack-epochs {record['options']['attack_epochs']:g}" if "attacks" in record else "--skip-attacks"
            )
            lines.append(
                f"python examples/benchmarks/certified.py {data} {given} {attacks} --output runs/certified.json"
            )
    return "\n".join(lines)


def certificates() -> Section:
    radii, rows = (0.5, 1.0, 2.0), []
    for task, seed, record in certified_records():
        certificate = record["certificate"]
        [curve] = certificate["curves"].values()
        found = {row["radius"]: row["accuracy"] for row in curve}
        scales = (str(certificate["sigma"]), f"{certificate['relative_sigma']:.2f}")
        rows.append([task, seed, *scales, *(percent(found.get(r)) for r in radii), points(record["fidelity"])])
    columns = ["data", "=seed", "=sigma", "=sigma / trained weights", *(f"=right at {r} sigma (%)" for r in radii)]
    about = (
        "Share of the triggers that every net within a distance still answers as the key says, with the confidence of the certificate. Sigma is "
        "the noise level, in units of each tensor's size when training starts."
    )
    return Section("Certificates", about, certified_commands(), [*columns, "=accuracy (points)"], rows)


def certified_attacks() -> Section:
    rows = []
    for task, seed, record in certified_records():
        for attack, row in record.get("attacks", {}).items():
            distance = row.get("distance_in_sigma")
            numbers = (percent(row["accuracy"]), str(row["plain_matches"]), bits(row["log2_p"]))
            far = "" if distance is None else f"{distance:.0f}"
            rows.append([task, seed, str(record["config"]["sigma"]), plain(attack), *numbers, far])
    columns = [
        "data",
        "=seed",
        "=sigma",
        "attack",
        "=accuracy (%)",
        "=triggers kept",
        "=evidence (bits)",
        "=moved by (sigma)",
    ]
    about = (
        "Real attacks move the weights much further than any certificate reaches (last column against the radii above); the triggers are read "
        "all the same where the evidence says so. `0.1x` is a tenth of the training rate."
    )
    return Section("Attacks on certified marks", about, certified_commands("attacks"), columns, rows)


def certify_speed() -> Section:
    record = read("certify")
    rows = [
        [
            kind,
            f"{row['medians']['loop_over_full']:.1f}",
            f"{row['medians']['full_over_early']:.1f}",
            str(len(row["rounds"])),
        ]
        for kind, row in record["speed"].items()
    ]
    about = (
        f"{record['draws']} draws of noise, two cores: against a plain loop, and what stopping early saves on top. Peak memory is "
        f"{record['memory']['peak_total_in_models']:.1f} times the model (ResNet-50)."
    )
    columns = ["noise on, precision", "=times as fast as a loop", "=times faster again, stopping early", "=rounds"]
    command = "python examples/benchmarks/certify.py --rounds 3 --epochs 8 --output runs/certify.json"
    return Section("Time of a certificate", about, command, columns, rows)


def certified_schedules() -> Section:
    record, rows = read("certify_embedding_cifar10"), []
    for name in ("plain", "amortised", "released"):
        row = record[name]
        ratio = row.get("ratio_after_warmup", row.get("ratio", 1.0))
        certified = row.get("certified_accuracy", {})
        shares = (percent(certified.get("0.5")), percent(certified.get("1.0")))
        rows.append([name, f"{ratio:.2f}", percent(row["accuracy"]), *shares])
    columns = [
        "schedule",
        "=time per epoch (ratio)",
        "=accuracy (%)",
        "=right at 0.5 sigma (%)",
        "=right at 1.0 sigma (%)",
    ]
    about = (
        f"CIFAR-10, {record['epochs']} epochs, one seed, sigma {record['sigma']}: the default schedule spreads the noisy passes over the ordinary "
        "steps; `released` is that of the public code, timed after its warm-up."
    )
    command = "python examples/benchmarks/certify.py --embedding cifar10 --data FOLDER --threads 1 --output runs/embedding.json"
    return Section("Two schedules of certified training", about, command, columns, rows)


SECTIONS = {
    "stacked-digits": stacked_digits,
    "stacked-cifar10": stacked_cifar10,
    "choice-function-coupled": choice_function_coupled,
    "certificates": certificates,
    "certified-attacks": certified_attacks,
    "certify-speed": certify_speed,
    "certified-schedules": certified_schedules,
}
