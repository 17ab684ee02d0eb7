"""What the training scripts share: the options of marks, whoever signs them, and the run itself."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import HfArgumentParser, PreTrainedModel, TrainingArguments

from hf_watermark import AutoTrainer, AutoWatermarkConfig, Owner, WatermarkConfig, WatermarkKey, stack_trainers
from hf_watermark.configuration.config import FORMAT_VERSION
from hf_watermark.mapping import METHODS


@dataclass
class WatermarkArguments:
    methods: list[str] = field(
        default_factory=lambda: ["greedy_residuals"],
        metadata={"help": "Methods to embed, such as greedy_residuals; `hf-watermark methods` lists them."},
    )
    owner: str | None = field(
        default=None, metadata={"help": "Owner file from `hf-watermark owner create`; a fresh owner by default."}
    )
    key_dir: str | None = field(
        default=None, metadata={"help": "Folder of the secret key; `<output_dir>-key` by default."}
    )
    passphrase_file: str | None = field(
        default=None, metadata={"help": "File whose first line opens the owner file and seals owner and key."}
    )


@dataclass
class SourceArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "Hub id or folder to fine-tune."})
    config_name: str | None = field(
        default=None, metadata={"help": "Config (JSON file, folder, Hub id) to train from scratch."}
    )

    def refuse_both(self) -> None:
        if (self.model_name_or_path is None) == (self.config_name is None):
            raise SystemExit(
                "give exactly one of --model_name_or_path (fine-tune) and --config_name (train from scratch)"
            )


def method_arguments(method: str) -> type:
    """A dataclass with the fields of a method's config, each prefixed with the method's name."""
    fields = dataclasses.fields(METHODS[method].load("Config"))
    prefixed = [
        (f"{method}_{item.name}", item.type, field(default=item.default, metadata=item.metadata)) for item in fields
    ]
    return dataclasses.make_dataclass(f"{method}_arguments", prefixed)


def parse(kinds: Sequence[type], methods: Sequence[str]) -> tuple[list[Any], list[WatermarkConfig]]:
    """One object per dataclass of `kinds` (the third is [`WatermarkArguments`]), and the configs of the methods that were chosen."""
    parser: Any = HfArgumentParser([*kinds, *map(method_arguments, methods)])  # type: ignore[arg-type]
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        parsed = parser.parse_json_file(sys.argv[1])
    else:
        parsed = parser.parse_args_into_dataclasses()
    options = dict(zip(methods, parsed[len(kinds) :], strict=True))
    configs = []
    for method in parsed[2].methods:
        if method not in methods:
            raise SystemExit(f"--methods: {method!r} is none of {', '.join(methods)}")
        fields = {name.removeprefix(f"{method}_"): value for name, value in vars(options[method]).items()}
        configs.append(AutoWatermarkConfig.from_dict({"method": method, "format_version": FORMAT_VERSION, **fields}))
    return list(parsed[: len(kinds)]), configs


def two_splits(splits: DatasetDict, name: str | None, seed: int, **options: Any) -> DatasetDict:
    """`train` and `eval`; a tenth of `train` where there is no split to evaluate on."""
    name = name or next((name for name in ("validation", "val", "test") if name in splits), None)
    if name is None:
        parts = splits["train"].train_test_split(0.1, seed=seed, **options)
        return DatasetDict(train=parts["train"], eval=parts["test"])
    return DatasetDict(train=splits["train"], eval=splits[name])


def pick_columns(splits: DatasetDict, source: str, **columns: str) -> DatasetDict:
    """Only `columns`, under their new names: `image="photo"`."""
    for column in columns.values():
        if column not in splits["train"].column_names:
            raise SystemExit(f"no column {column!r} in {source}; it has {splits['train'].column_names}")
    return splits.select_columns(list(columns.values())).rename_columns({old: new for new, old in columns.items()})


def train(
    model: PreTrainedModel,
    arguments: TrainingArguments,
    marks: WatermarkArguments,
    configs: list[WatermarkConfig],
    **options: Any,
) -> None:
    """Trains, saves model and key, and prints what can be read of the mark; `options` are those of the trainer."""
    passphrase = marks.passphrase_file and Path(marks.passphrase_file).read_text().splitlines()[0]
    key_dir = Path(marks.key_dir or f"{arguments.output_dir.rstrip('/')}-key")
    if arguments.resume_from_checkpoint:
        identity: dict[str, Any] = {"key": WatermarkKey.load(key_dir, passphrase)}
    else:
        identity = {"owner": Owner.load(marks.owner, passphrase) if marks.owner else Owner.create()}
    trainer_class = stack_trainers(*(AutoTrainer.for_method(config.method) for config in configs))
    trainer = trainer_class(model=model, args=arguments, watermark=configs, **identity, **options)
    # Rank 0 made the key and everybody else got it from there, so only rank 0 writes it.
    if trainer.is_world_process_zero() and "owner" in identity:
        trainer.key.save(key_dir, passphrase)
        if marks.owner is None:
            identity["owner"].save(key_dir / "owner.json", passphrase)
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    trainer.save_model()
    trainer.log_metrics("eval", trainer.evaluate())
    if trainer.is_world_process_zero():
        print(trainer.evidence, *trainer.evidence.parts, f"key: {key_dir}", sep="\n")
    # Communication threads that still run when a process ends may abort it.
    trainer.accelerator.end_training()
