"""
Certified watermarks on one task: fidelity, certificate, and how far real attacks move the same weights.

    python examples/benchmarks/certified.py --task digits --seed 0 --output runs/certified/digits0.json
    python examples/benchmarks/certified.py --task cifar10 --data FOLDER --seed 0 --output runs/certified/cifar0.json

One process per seed; the JSON is rewritten after every step. `--nulls N` also trains N unmarked models of the same recipe with other
seeds and asks for their certificates under the key. Fine-tuning `sgd_0.05` is the attack of Gan et al. (ICCV 2023: 30 epochs at 0.05 on 20 %
of the data) scaled down to `--attack-epochs` on `--attack-images`.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from recipes import EPOCHS, LEARNING_RATES, arguments, build_model, load_data, train_twin
from torch.utils.data import Subset

from hf_watermark import CertifiedConfig, CertifiedTrainer, Owner
from hf_watermark.attacks import Attack, FineTune, Int8Quantize, MagnitudePrune, ReestimateBatchNorm, UniformQuantize
from hf_watermark.evaluation import accuracy


RADII = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


def attacks_of(task: str, epochs: float) -> dict[str, Attack]:
    rate = LEARNING_RATES[task]
    grid = {
        f"adamw_{factor}x": FineTune(learning_rate=factor * rate, epochs=epochs, optimizer="adamw")
        for factor in (0.01, 0.1, 1)
    }
    return grid | {
        "sgd_0.05": FineTune(learning_rate=0.05, epochs=epochs, schedule="refit"),
        "int8": Int8Quantize(),
        "8 bit": UniformQuantize(bits=8),
        "4 bit": UniformQuantize(bits=4),
        "prune 10 %": MagnitudePrune(amount=0.1),
        "prune 50 %": MagnitudePrune(amount=0.5),
        "re-estimated BatchNorm": ReestimateBatchNorm(),
    }


def evidence_row(trainer: CertifiedTrainer, model: Any) -> dict[str, Any]:
    evidence = trainer.verify(model)
    part = evidence.parts[0]
    return {"log2_p": round(evidence.log2_p, 1), "level": evidence.level, **part.details}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--task", choices=list(EPOCHS), required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, help="the task's own by default")
    parser.add_argument("--images", type=int, help="training images")
    parser.add_argument("--attack-epochs", type=float, default=5)
    parser.add_argument("--attack-images", type=int, default=10_000)
    parser.add_argument("--nulls", type=int, default=0)
    parser.add_argument("--config", type=json.loads, default={}, help="fields of CertifiedConfig as JSON")
    parser.add_argument("--skip-attacks", action="store_true")
    parser.add_argument(
        "--twin", type=Path, help="JSON of a run of the same task, seed and epochs, whose twin is not trained again"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    epochs = options.epochs or EPOCHS[options.task]
    train, test = load_data(options.task, options.data, options.images)
    config = CertifiedConfig(**{"target_log2_p": 0.0, "noise": "relative"} | options.config)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    folder = options.output.with_suffix("")
    settings = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    record: dict[str, Any] = {"options": settings | {"epochs": epochs}, "config": config.to_dict()}

    def save(**fields: Any) -> None:
        record.update(fields)
        options.output.write_text(json.dumps(record, indent=1))

    twin = None
    if options.twin:
        save(twin=json.loads(options.twin.read_text())["twin"] | {"reused": True})
    else:
        begin = time.perf_counter()
        twin = train_twin(options.task, options.seed, epochs, folder, train)
        save(twin={"accuracy": accuracy(twin.model, test), "seconds": round(time.perf_counter() - begin, 1)})
    begin = time.perf_counter()
    marked = CertifiedTrainer(
        model=build_model(options.task, options.seed),
        args=arguments(options.task, options.seed, epochs, folder),
        train_dataset=train,
        watermark=config,
        owner=Owner.create(),
    )
    marked.train()
    save(marked={"accuracy": accuracy(marked.model, test), "seconds": round(time.perf_counter() - begin, 1)})
    save(
        fidelity=round(record["marked"]["accuracy"] - record["twin"]["accuracy"], 4),
        evidence=evidence_row(marked, marked.model),
        twin_evidence=evidence_row(marked, twin.model) if twin else None,
        certificate=marked.certify(RADII).to_dict(),
    )
    print(json.dumps({name: record[name] for name in ("fidelity", "evidence", "twin", "marked")}))
    print([(row["radius"], row["accuracy"]) for curve in record["certificate"]["curves"].values() for row in curve])
    if not options.skip_attacks:
        data = Subset(train, range(min(options.attack_images, len(train))))
        rows, attacked = {}, {}
        for label, attack in attacks_of(options.task, options.attack_epochs).items():
            attacked[label] = attack(marked.model, data)
            rows[label] = {"accuracy": accuracy(attacked[label], test), **evidence_row(marked, attacked[label])}
            distances = marked.certify(
                [1.0], draws=1000, at_least=1e-9, attacked={label: attacked[label]}
            ).attack_distances
            rows[label]["distance_in_sigma"] = distances[label]
            save(attacks=rows)
            print(label, json.dumps(rows[label]))
    nulls = []
    for number in range(options.nulls):
        model = train_twin(options.task, 1000 + number, epochs / 3, folder, train).model
        certificate = marked_certificate(marked, model)
        nulls.append({"accuracy": accuracy(model, test), **evidence_row(marked, model), **certificate})
        save(nulls=nulls, nulls_certified=sum(row["certified"] for row in nulls))


def marked_certificate(marked: CertifiedTrainer, model: torch.nn.Module) -> dict[str, Any]:
    """What the key would certify on a model that is not marked."""
    from hf_watermark.methods.certified import certify

    [claim] = marked.key.claims()
    certificate = certify(claim, model, radii=(0.25, 0.5), draws=300)
    return {"certified": certificate.certified, "accuracy_at_0.25": certificate.accuracy_at(0.25)}


if __name__ == "__main__":
    main()
