"""Tables of a watch over a Hub of generated repositories: what is found, what it costs, and what a killed one loses."""

from typing import Any

from table_section import Section, percent, read


COMMAND = "python examples/benchmarks/watch.py --repos {} --run {} --results runs/watch.json"
MARKED = 20


def watched() -> Section:
    rows = []
    for label, run in read("watch").items():
        if "kills" in run:
            continue
        costs = {item["outcome"]: item for item in run["costs"]}
        discarded, read_once = costs["discarded"], costs["look"]
        rows.append(
            [
                *named(label),
                f"{run['repositories']:,}",
                f"{len(run['found'])} of {MARKED}",
                str(len(run["false"])),
                f"{discarded['requests']:.1f}",
                str(discarded["most_requests"]),
                f"{read_once['requests']:.1f}",
                str(read_once["most_requests"]),
                percent(run["share_read"]["mean"]),
                percent(run["share_read"]["max"]),
                f"{1000 * discarded['seconds']:.0f}",
                f"{1000 * read_once['seconds']:.0f}",
                f"{run['repositories'] / run['wall_s']:.1f}",
                f"{run['memory_mb_of_a_worker']:.0f}",
                f"{run['memory_mb_where_it_aligned']:.0f}",
                run["table_sha256"][:8],
            ]
        )
    about = (
        "A Hub on the same machine, whose repositories have headers of real architectures and random weights, and among them ten copies of each of two marked "
        "models (a ResNet and a ViT): as they were, fine-tuned twice, in half precision, in 8 and 4 bits, permuted, under a prefix, renamed and in shards. Requests, "
        "time and share of the bytes of one repository: of those that their headers discard, and of those whose carriers are read and that are not aligned. "
        "Aligning reads the whole file. Memory is that of a worker with its part of what it shares with others, after each of its batches: the median, and the most, "
        "where a model was aligned. Seconds are of a clock, on two cores that did other work as well. Equal digests in the last column: equal tables."
    )
    columns = [
        "workers",
        "=keys",
        "=repositories",
        "=found",
        "=false",
        "=requests, discarded",
        "=most",
        "=requests, read",
        "=most",
        "=read (%)",
        "=most (%)",
        "=ms, discarded",
        "=ms, read",
        "=repositories a second",
        "=MB a worker",
        "=MB where it aligned",
        "table",
    ]
    commands = (COMMAND.format(10_000, run) for run in ("local-1", "local-4", "ray-2"))
    many = COMMAND.format(600, "local-1") + " --keys 50"
    return Section("A watch over a Hub", about, "\n".join([*commands, many]), columns, rows)


def named(label: str) -> tuple[str, str]:
    """How a run was made and how many keys it watched for, from its name in the results."""
    run, _, *keys = label.split(", ")
    kind, _, count = run.partition("-")
    workers = f"{count} {'on Ray' if kind == 'ray' else 'in a pool'}" if count != "1" else "1"
    return workers, keys[0].split()[0] if keys else "2"


def killed() -> Section:
    rows = []
    for run in read("watch").values():
        if "kills" in run:
            whole, torn = run["looks"]
            same = "yes" if run["same_table"] else "no"
            cells = [
                run["kills"],
                run["repositories"],
                whole,
                torn,
                same,
                f"{run['found']} of {MARKED}",
                len(run["false"]),
            ]
            rows.append([f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells])
    about = (
        "The same watch, killed with all its processes at random moments (2 to 9 seconds after each start) and started again, against one that was not killed. Same "
        "table: repositories, revisions, outcomes, keys, numbers of looks, evidence, digests and alarms are equal, row by row."
    )
    columns = "=kills, =repositories, =looks, =looks of the killed one, same table, =found, =false".split(", ")
    return Section("A watch that is killed", about, COMMAND.format("600 --batch 100", "killed-50"), columns, rows)


def budget() -> Section:
    record: dict[str, Any] = read("watch_budget")
    rows = []
    for run in (record, record["with_a_budget_of_1"]):
        for kind in ("independent", "copies", "one_for_all"):
            found = run[kind]
            cells = [
                f"{found[name]:.3g}"
                for name in ("false_alarms", "false_alarms_error", "fdr", "power_at_2^-40", "power_of_discoveries")
            ]
            rows.append([KINDS[kind], f"{run['budget']:g}", *cells])
    about = (
        f"{record['looks']:,} simulated looks at unmarked suspects, {record['repetitions']} repetitions, {record['marked']} marked ones at p = 2^-40 among them. False "
        f"alarms: mean number of all looks, to be held below the budget; share of false discoveries: to be held below {record['fdr_bound']:g}."
    )
    columns = "p-values, =budget, =false alarms, =standard error, =share of false discoveries, =alarms of marked, =discoveries of marked".split(
        ", "
    )
    command = (
        "python examples/benchmarks/watch_budget.py --looks 1000000 --repetitions 200 --results runs/watch_budget.json"
    )
    return Section("False alarms of a watch that never ends", about, command, columns, rows)


KINDS = {
    "independent": "independent",
    "copies": "a hundred copies share one",
    "one_for_all": "one p-value for all",
}
SECTIONS = {"watch": watched, "watch-killed": killed, "watch-budget": budget}
