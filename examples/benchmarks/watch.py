"""
A watch over a Hub of 10,000 generated repositories, twenty of them with a mark: what is found, what is not, and what it costs.

    python examples/benchmarks/watch.py --repos 10000 --run local-1 --results examples/benchmarks/results/watch.json

Each `--run` (local-1, local-4, ray-2, killed-50) is one entry of the results; those that are there already are left out. Models and keys are made once
under `--folder`. The Hub is `tests/support/many_repos.py`, in a process of its own. `--keys 50` watches for further keys of the same two layouts, which
mark nothing there. `--ship` writes the costs of one repository from the results to the file that forecasts read.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

ARCHITECTURES = (
    ["mobilenetv3_small_100", "efficientnet_b0", "convnext_atto", "regnety_002", "mixer_s16_224", "densenet121", "swin_tiny_patch4_window7_224"] * 3
    + ["mobilenetv2_100", "vit_base_patch16_224", "deit_small_patch16_224", "resnet18", "vit_tiny_patch16_224"]
)  # fmt: skip
OWNED = {"a": "resnet18", "b": "vit_tiny_patch16_224"}
CHANGES = ("plain", "tuned", "far_tuned", "half", "int8", "four_bits", "permuted", "prefixed", "renamed", "sharded")


def prepare(folder: Path, keys: int) -> None:
    """Two owners, ten changed copies of each one's marked model, and further keys of the same layout where more than two are wanted."""
    from watched import add_noise, changed, marked_copy, pretrained_like

    from hf_watermark.attacks.table import make_attack

    for owner, architecture in OWNED.items():
        for place in range(1, keys // len(OWNED)):
            if not (folder / owner / "keys" / str(place)).exists():
                marked_copy(pretrained_like(architecture), folder / owner / "keys" / str(place), steps=1)
        if (folder / owner / "done").exists():
            continue
        start = pretrained_like(architecture)
        model, _ = marked_copy(start, folder / owner / "key", steps=20)
        start.save_pretrained(folder / owner / "start")

        def save(name: str, made: Any, owner: str = owner, **options: Any) -> None:
            made.save_pretrained(folder / owner / name, **options)

        save("plain", model)
        save("tuned", tuned(model, 10))
        save("far_tuned", changed(model, add_noise(0.5)))
        save("half", changed(model, lambda net: net.half()))
        save("int8", make_attack("uniform_quantize", bits=8)(model, None))
        save("four_bits", make_attack("uniform_quantize", bits=4)(model, None))
        save("permuted", make_attack("permute")(model, images_of(model)))
        save("sharded", model, max_shard_size="25MB" if owner == "a" else "12MB")
        rename(folder / owner, "prefixed", model.state_dict(), lambda name, place: f"net.backbone.{name}")
        rename(folder / owner, "renamed", model.state_dict(), lambda name, place: f"p{place:04d}")
        (folder / owner / "done").touch()


def images_of(model: Any) -> Any:
    import torch

    return [{"pixel_values": torch.rand(3, 224, 224), "labels": 0} for _ in range(2)]


def tuned(model: Any, steps: int) -> Any:
    """A copy after some steps of SGD towards random labels of noise: real gradients, of every layer."""
    import copy

    import torch

    other = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(other.parameters(), lr=1e-3, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        images, labels = torch.randn(4, 3, 224, 224, generator=generator), torch.randint(10, (4,), generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(other(pixel_values=images).logits, labels).backward()
        optimizer.step()
    return other.eval()


def rename(folder: Path, name: str, order: Any, rule: Any) -> None:
    from safetensors.torch import load_file, save_file

    stored = load_file(folder / "plain" / "model.safetensors")
    tensors = {name: stored[name] for name in order if name in stored}
    (folder / name).mkdir(exist_ok=True)
    renamed = {rule(old, place): tensor for place, (old, tensor) in enumerate(tensors.items())}
    save_file(renamed, folder / name / "model.safetensors", metadata={"format": "pt"})


def serve(folder: Path, count: int, refusing: int) -> None:
    """Runs the Hub until its standard input ends; prints its address."""
    from many_repos import ManyRepos, shapes_of
    from server import Refused

    rng = random.Random(0)
    with ManyRepos() as hub:
        for architecture in ARCHITECTURES:
            shapes_of(architecture)
        hub.generate(count, ARCHITECTURES)
        for place, (owner, change) in enumerate((owner, change) for owner in OWNED for change in CHANGES):
            hub.add_marked(f"copies-{owner}/{change}", folder / owner / change, int((place + 0.5) * count / 20))
        if refusing:

            def refuse(method: str, path: str) -> Refused | None:
                chance = rng.random() * refusing
                if chance < 1:
                    return Refused(429, None, "slow down", {"Retry-After": "0"})
                return Refused(502, None, "bad gateway") if chance < 1.5 else None

            hub.refuse = refuse
        print(hub.url, flush=True)
        sys.stdin.read()


def start_hub(folder: Path, count: int, refusing: int = 0) -> tuple[subprocess.Popen, str]:
    command = [
        sys.executable,
        __file__,
        "--serve",
        "--folder",
        str(folder),
        "--repos",
        str(count),
        "--refusing",
        str(refusing),
    ]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    return server, server.stdout.readline().strip()


def command_of(folder: Path, output: Path, executor: str, workers: int, batch: int, count: int = 2) -> list[str]:
    keys = [f"--key={folder / owner / 'key'}" for owner in OWNED]
    keys += [
        f"--key={folder / owner / 'keys' / str(place)}" for owner in OWNED for place in range(1, count // len(OWNED))
    ]
    references = [f"--reference={folder / owner / 'start'}={folder / owner / 'key'}" for owner in OWNED]
    return [
        sys.executable, "-m", "hf_watermark.cli.main", "watch", *keys, *references, "--output", str(output), "--rate", "100000",
        "--batch", str(batch), "--executor", executor, "--workers", str(workers), "--json",
    ]  # fmt: skip


def environment_of(url: str, folder: Path) -> dict[str, str]:
    from server import environment

    return {
        **os.environ,
        **environment(url, folder / "home"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def measure(folder: Path, count: int, executor: str, workers: int, batch: int, keys: int = 2) -> dict[str, Any]:
    """One watch from an empty folder to the end of the list."""
    output = folder / f"watch-{executor}-{workers}-{count}-{keys}"
    server, url = start_hub(folder, count)
    try:
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            command_of(folder, output, executor, workers, batch, keys),
            env=environment_of(url, folder),
            capture_output=True,
            text=True,
            check=False,
        )
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    finally:
        server.stdin.close()  # type: ignore[union-attr]
        server.wait()
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr[-4000:])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(wall, 1), "cpu_s_of_waited_processes": round(cpu, 1), "workers": workers, **facts(output)}


def facts(output: Path) -> dict[str, Any]:
    """What the table of a finished watch says."""
    from hf_watermark.watch.report import costs_of, repositories_of
    from hf_watermark.watch.table import Table

    table = Table(output)
    rows = table.looks().to_pylist()
    alarms = [row for row in rows if row["alarm"]]
    right = {row["repo"] for row in alarms if row["repo"].startswith(f"copies-{Path(row['key']).parent.name}/")}
    wrong = [
        (row["repo"], row["key"])
        for row in alarms
        if not row["repo"].startswith(f"copies-{Path(row['key']).parent.name}/")
    ]
    expected = {f"copies-{owner}/{change}" for owner in OWNED for change in CHANGES}
    repositories = repositories_of(table)
    read = [row for row in repositories if row["outcome"] == "look" and not row["aligned"]]
    stats = [json.loads(path.read_text()) for path in (output / "batches").glob("*/engine-*/stats/*.json")]
    memory = [
        step["stats"]["memory_mb"]["mean"] for run in stats for step in run if "memory_mb" in step.get("stats", {})
    ]
    starts = [step["stats"]["start"]["mean"] for run in stats for step in run if "start" in step.get("stats", {})]
    busy = sum(row["seconds"] for row in repositories)
    return {
        "repositories": len(repositories),
        "found": sorted(right),
        "missed": sorted(expected - right),
        "false": wrong,
        "looks": sum(row["look"] is not None for row in rows),
        "costs": costs_of(repositories),
        "most_requests_discarded_single_file": max((row["requests"] for row in repositories if row["outcome"] == "discarded"), default=0),
        "share_read": quantiles([row["bytes"] / row["size"] for row in read]),
        "requests_read": quantiles([float(row["requests"]) for row in read]),
        "repositories_per_second_and_core": round(len(repositories) / busy, 2) if busy else None,
        "memory_mb_of_a_worker": round(statistics.median(memory), 1) if memory else None,
        "memory_mb_where_it_aligned": round(max(memory), 1) if memory else None,
        "worker_start_s": round(sum(starts) / len(starts), 3) if starts else None,
        "table_sha256": digest_of(rows),
        "outcomes": {name: sum(row["outcome"] == name for row in repositories) for name in {row["outcome"] for row in repositories}},
        "marked": {
            row["repo"]: {"log2_p": round(row["log2_p"], 1), "requests": row["requests"], "share": round(row["bytes"] / row["size"], 4), "aligned": row["aligned"]}
            for row in alarms
        },
    }  # fmt: skip


def quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {}
    at = {
        "mean": sum(ordered) / len(ordered),
        "median": ordered[len(ordered) // 2],
        "p95": ordered[int(0.95 * (len(ordered) - 1))],
    }
    return {name: round(value, 4) for name, value in (at | {"max": ordered[-1]}).items()}


def digest_of(rows: list[dict[str, Any]]) -> str:
    """Of everything but how long it took, and on which machine the keys lie."""
    plain = [
        {name: value for name, value in row.items() if name not in ("seconds", "key", "requests")}
        | {"key": (row["key"] or "").split("/")[-2:]}
        for row in rows
    ]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def killed(folder: Path, count: int, times: int, batch: int) -> dict[str, Any]:
    """The same watch, killed with all its workers at random moments, and compared with one that was not."""
    rng = random.Random(1)
    server, url = start_hub(folder, count)
    env = environment_of(url, folder)
    kills = 0
    try:
        whole, torn = folder / f"whole-{count}", folder / f"torn-{count}"
        subprocess.run(command_of(folder, whole, "local", 1, batch), env=env, capture_output=True, check=False)
        command = command_of(folder, torn, "local", 1, batch)
        while kills < times:
            process = subprocess.Popen(
                command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            try:
                process.wait(timeout=rng.uniform(2.0, 9.0))
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    finally:
        server.stdin.close()  # type: ignore[union-attr]
        server.wait()
    first, second = facts(whole), facts(torn)
    same = compared(whole) == compared(torn)
    return {
        "kills": kills, "repositories": second["repositories"], "looks": [first["looks"], second["looks"]], "same_table": same,
        "exit_status": done.returncode, "found": len(second["found"]), "false": second["false"],
    }  # fmt: skip


def compared(output: Path) -> list[tuple[Any, ...]]:
    from hf_watermark.watch.table import Table

    names = ("repo", "revision", "outcome", "key", "look", "log2_p", "log2_e", "digest", "alarm", "discovery")
    return [tuple(row[name] for name in names) for row in Table(output).looks().to_pylist()]


def ship(results: dict[str, Any]) -> None:
    """Costs of the largest run with one worker and two keys, and what each further key adds to what was read, from a run with more keys."""
    from hf_watermark.watch.forecast import MEASURED

    runs = [(name, run) for name, run in results.items() if name.startswith("local-1")]
    name, run = max(
        ((name, run) for name, run in runs if "keys" not in name), key=lambda pair: pair[1]["repositories"]
    )
    costs = {item["outcome"]: item for item in run["costs"]}
    said = {
        f"{stage}_{field}": round(costs[outcome][field], 4)
        for stage, outcome in (("header", "discarded"), ("read", "look"))
        for field in ("requests", "bytes", "seconds")
    }
    more, many = max(((name, run) for name, run in runs if "keys" in name), key=lambda pair: pair[1]["repositories"])
    keys = int(more.split(", ")[-1].split()[0])
    with_more = {item["outcome"]: item for item in many["costs"]}
    each = {
        stage: max(0.0, with_more[outcome]["seconds"] - costs[outcome]["seconds"]) / further
        for stage, outcome, further in (("header", "discarded", keys - 2), ("read", "look", keys // 2 - 1))
    }
    said |= {"header_key_seconds": round(each["header"], 6), "key_seconds": round(each["read"], 6)}
    source = f"examples/benchmarks/watch.py (one worker): {name}, 2 keys of two layouts; of further keys: {more.partition(', ')[2]}"
    MEASURED.write_text(json.dumps({"costs": said, "measured": source}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "watch")
    parser.add_argument("--repos", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--run", action="append", default=[])
    parser.add_argument("--results", type=Path)
    parser.add_argument("--refusing", type=int, default=0)
    parser.add_argument("--keys", type=int, default=2, help="an even number")
    parser.add_argument("--ship", action="store_true")
    parser.add_argument("--serve", action="store_true")
    options = parser.parse_args()
    if options.serve:
        return serve(options.folder, options.repos, options.refusing)
    results = json.loads(options.results.read_text()) if options.results and options.results.exists() else {}
    if options.ship:
        return ship(results)
    options.folder.mkdir(parents=True, exist_ok=True)
    prepare(options.folder, options.keys)
    for run in options.run or ["local-1"]:
        name = f"{run}, {options.repos} repositories" + (f", {options.keys} keys" if options.keys > 2 else "")
        if name in results:
            continue
        kind, _, number = run.partition("-")
        if kind == "killed":
            results[name] = killed(options.folder, options.repos, int(number), options.batch)
        else:
            results[name] = measure(options.folder, options.repos, kind, int(number), options.batch, options.keys)
        print(json.dumps({name: results[name]}, indent=1), flush=True)
        if options.results:
            options.results.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    return None


if __name__ == "__main__":
    main()
