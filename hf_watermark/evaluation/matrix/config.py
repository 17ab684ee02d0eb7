"""The YAML of a benchmark: which marks, on which nets and data, against which attacks, with which seeds."""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, StringConstraints, model_validator

from ...attacks import ATTACKS, Attack, full_battery, make_attack, standard_battery
from ...configuration import WatermarkConfig
from ...mapping import METHODS, method_entry
from ...serialization import InvalidInput
from ...serialization.files import naming, open_regular, read_all
from ...serialization.schema import Strict, validated
from ...serialization.words import known_names


CONFIG_BYTES = 256 * 1024
BATTERIES: dict[str, Callable[..., dict[str, Attack]]] = {"standard": standard_battery, "full": full_battery}
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$")]
Count = Annotated[int, Field(ge=1, le=10**8)]
Positive = Annotated[float, Field(gt=0, lt=1e6)]
Precision = Literal["fp32", "bf16"]


class Training(Strict):
    """How every model on a data set is trained: AdamW, through the Trainer."""

    epochs: Positive
    learning_rate: Positive
    batch_size: Count = 128
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"


class DataSpec(Strict):
    """
    Where images come from.

    Args:
        source (`str`):
            `digits` (scikit-learn), `parquet` (a folder with `train-*.parquet` and `test-*.parquet`), or `synthetic` (a fixed coarse pattern per
            class, plus noise).
        folder (`str`, *optional*):
            Of `parquet`. It is no part of a cell's identity: the digest of its files is.
        train_images, test_images (`int`, *optional*):
            The first so many of each split.
        augment (`bool`):
            Random crop with 4 pixels of padding, and horizontal flip.
        side (`int`, *optional*):
            Height and width that the images of `parquet` are brought to, for nets that need more pixels than there are.
    """

    source: Literal["digits", "parquet", "synthetic"]
    training: Training
    folder: str | None = None
    train_images: Count | None = None
    test_images: Count | None = None
    augment: bool = False
    side: Annotated[int, Field(ge=8, le=1024)] | None = None

    @model_validator(mode="after")
    def _folder(self) -> "DataSpec":
        if (self.source == "parquet") != (self.folder is not None):
            raise ValueError("give `folder` with the source parquet, and with no other")
        if self.source == "digits" and self.augment:
            raise ValueError("`augment` is for pictures: a mirrored digit is another digit")
        if self.side and self.source != "parquet":
            raise ValueError("`side` is for the source parquet; the other images have their size")
        return self


class BackboneSpec(Strict):
    """
    One net: a `preset`, a `transformers` config (with `model_type`), or a `timm` architecture (with its `options`). Labels, channels and image
    size are those of the data. A timm architecture may start from `weights`, a safetensors file of its tensors; the last layer is then a new one
    where the file has other labels.
    """

    preset: str | None = None
    transformers: dict[str, Any] | None = None
    timm: str | None = None
    options: dict[str, Any] = {}
    weights: str | None = None

    @model_validator(mode="after")
    def _one(self) -> "BackboneSpec":
        if sum(value is not None for value in (self.preset, self.transformers, self.timm)) != 1:
            raise ValueError("give exactly one of `preset`, `transformers` and `timm`")
        if self.options and self.timm is None:
            raise ValueError("`options` goes with `timm` only")
        return self


class AttackGroup(Strict):
    """
    Attacks that get the same data.

    Args:
        battery (`str`, *optional*):
            A list of the library, `standard` or `full`, made with `options` (epochs, ...) at the learning rate of the data set.
        only, skip (`list[str]`):
            Labels of the battery to take or to leave out; `*` stands for anything.
        attacks (`dict`):
            Further attacks by label: `{name: finetune, learning_rate: 0.05, epochs: 3}`.
        images (`int`, *optional*):
            Training images that the attacker has; all by default. Query images of the key are never among them.
    """

    battery: str | None = None
    options: dict[str, Any] = {}
    only: list[str] = ["*"]
    skip: list[str] = []
    attacks: dict[Label, dict[str, Any]] = {}
    images: Count | None = None


class MatrixConfig(Strict):
    """
    A whole benchmark. An unmarked twin of each seed is always trained; every key is also tried on it.

    Args:
        methods (`dict`):
            By label, the methods of one model and the fields of their configs; several are stacked.
        threads (`int`):
            Threads of each cell. More than one may change the last digits, so it is part of what determines a cell.
        precision (`str`):
            Of every training, the owner's and the attackers': `bf16` is mixed precision, with weights and marks in float32.
        precision_of (`dict`):
            By label of a method, another precision of it and of the unmarked twins that it is compared with.
    """

    name: Label
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=100)]
    methods: Annotated[dict[Label, dict[str, dict[str, Any]]], Field(min_length=1)]
    backbones: Annotated[dict[Label, BackboneSpec], Field(min_length=1)]
    data: Annotated[dict[Label, DataSpec], Field(min_length=1)]
    attacks: list[AttackGroup] = []
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    precision: Precision = "fp32"
    precision_of: dict[Label, Precision] = {}
    device: Literal["cpu", "cuda"] = "cpu"

    @model_validator(mode="after")
    def _usable(self) -> "MatrixConfig":
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("a seed is listed twice")
        for label in self.precision_of.keys() - self.methods.keys():
            raise ValueError(f"precision_of.{label}: is no method of this config; it has: {', '.join(self.methods)}")
        for label in self.methods:
            self.method_configs(label)
        for spec in self.data.values():
            self.attack_list(spec, seed=0)
        return self

    def method_configs(self, label: str) -> list[WatermarkConfig]:
        """
        Configs of the marks that one model carries, in the order of stacking: by name, so that a config means the same however it was
        written down (workers read it back from JSON, which has no order).
        """
        named = self.methods[label]
        if not named:
            raise ValueError(f"methods.{label}: names no method; choose some of {', '.join(METHODS)}")
        configs = []
        for method, fields in sorted(named.items()):
            config_class = method_entry(method).load("Config")
            configs.append(config_class.from_dict(config_class().to_dict() | fields))
        return configs

    def attack_list(self, data: DataSpec, seed: int) -> dict[str, tuple[Attack, int | None]]:
        """
        Attacks by label, each with the number of images that the attacker has.

        Raises:
            `ValueError`: when an attack, battery, option or label does not exist, or a label is used twice.
        """
        found: dict[str, tuple[Attack, int | None]] = {}
        for place, group in enumerate(self.attacks):
            for label, attack in _group_attacks(group, data, seed, place).items():
                if label in found:
                    raise ValueError(f"attacks.{place}: the label {label!r} is used twice")
                found[label] = (attack, group.images)
        return found


def _group_attacks(group: AttackGroup, data: DataSpec, seed: int, place: int) -> dict[str, Attack]:
    listed: dict[str, Attack] = {}
    if group.battery is not None:
        if group.battery not in BATTERIES:
            raise ValueError(
                f"attacks.{place}: there is no battery {group.battery!r}: {known_names(group.battery, BATTERIES)}"
            )
        options = {"learning_rate": data.training.learning_rate, "optimizer": "adamw"} | group.options
        try:
            made = BATTERIES[group.battery](**options, seed=seed)
        except TypeError as error:
            raise ValueError(f"attacks.{place}.options: {error}") from None
        for pattern in [*group.only, *group.skip]:
            if not any(fnmatchcase(label, pattern) for label in made):
                raise ValueError(
                    f"attacks.{place}: no attack of {group.battery!r} is called {pattern!r}; it has: {', '.join(made)}"
                )
        listed = {
            label: attack
            for label, attack in made.items()
            if any(fnmatchcase(label, pattern) for pattern in group.only)
            and not any(fnmatchcase(label, pattern) for pattern in group.skip)
        }
    for label, fields in group.attacks.items():
        options = dict(fields)
        name = options.pop("name", None)
        if not isinstance(name, str) or name not in ATTACKS:
            raise ValueError(f"attacks.{place}.{label}: `name` is {name!r}: {known_names(name, ATTACKS)}")
        if "seed" in ATTACKS[name].__dataclass_fields__:
            options.setdefault("seed", seed)
        if label in listed:
            raise ValueError(f"attacks.{place}: the label {label!r} is used twice")
        listed[label] = make_attack(name, **options)
    return listed


class _PlainLoader(yaml.SafeLoader):
    """YAML without repeated names, of which the first would be lost, and without aliases, which can blow up a small file."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise InvalidInput(
                f"line {self.peek_event().start_mark.line + 1}: aliases (*name) are not read; repeat it"
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            name = key.value
            if name in seen:
                raise InvalidInput(f"line {key.start_mark.line + 1}: {str(name)[:64]!r} appears twice")
            seen.add(name)
        return super().construct_mapping(node, deep)


def read_config(path: str | Path, folders: Mapping[str, str] | None = None) -> MatrixConfig:
    """
    Reads and checks a whole benchmark: every method config, attack and option is built once.

    Args:
        path (`str` or `Path`):
            The YAML.
        folders (`Mapping[str, str]`, *optional*):
            Folders of parquet data sets by their names in the config, in place of those that the config names.

    Raises:
        [`~serialization.InvalidInput`]: when the file is missing, too large, no YAML, or asks for what does not exist; the message names the
        field.
    """
    with naming(path):
        with open_regular(path) as (file, _):
            raw = read_all(file, CONFIG_BYTES)
        try:
            document = yaml.load(raw.decode("utf-8"), Loader=_PlainLoader)
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError, TypeError) as error:
            raise InvalidInput(f"no readable YAML ({' '.join(str(error).split())[:200]})") from None
        except InvalidInput:
            raise
        except ValueError as error:  # a date that does not exist, an integer of a million digits
            raise InvalidInput(f"no readable YAML ({error})") from None
        return parse_config(_with_folders(document, folders or {}))


def _with_folders(document: Any, folders: Mapping[str, str]) -> Any:
    specs = document.get("data") if isinstance(document, dict) else None
    for name, folder in folders.items():
        if not isinstance(specs, dict) or not isinstance(specs.get(name), dict):
            raise InvalidInput(f"has no data set {name!r}; --data names one of the config")
        specs[name]["folder"] = folder
    return document


def parse_config(document: Any) -> MatrixConfig:
    if not isinstance(document, dict):
        raise InvalidInput(f"holds a {type(document).__name__}, expected `name:`, `seeds:`, `methods:` ...")
    return validated(MatrixConfig, document, "benchmark config")
