"""
Runs a suspect's tensors on the owner's architecture, whatever they are called and whatever else lies beside them.

Which of the suspect's names belong together is found with stand-ins first: tensors of the right shapes without memory. Values are read only for
the names that fit, and one that cannot be read counts only if the model needs it.

transformers is imported where a model is built, because every suspect that is a file could be asked to become one, and few are.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..serialization import UnreadableFormat, shown
from .carriers import LayoutMismatch
from .formats import read_float
from .names import Renamed, Source, ports, prefixes_of
from .sharding import full_parameter, is_sharded
from .stored.turning import is_turned, turned


if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Prefixes, and spellings of other libraries, that are tried.
MOST_TRIES = 8
# Only counts training steps; files of other tools leave it out.
COUNTER = "num_batches_tracked"


@dataclass
class Attempt:
    """
    The suspect's tensors under names that transformers may know, and what it made of stand-ins of their shapes.

    Args:
        sources (`dict[str, Source]`): By the name that is given to transformers.
        lost (`list[str]`): Tensors of the model that were not there, or had another shape.
        unknown (`set[str]`): Names that it had no use for.
        turned (`bool`): Whether convolutions are stored as `[out, height, width, in]`.
    """

    sources: dict[str, Source]
    lost: list[str]
    unknown: set[str]
    turned: bool = False

    @property
    def used(self) -> frozenset[str]:
        """The suspect's tensors that may end up in the model."""
        return frozenset(
            name for key, source in self.sources.items() if key not in self.unknown for name in source.names
        )


def run_on_backbone(record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> "PreTrainedModel":
    """
    A model of the *owner's* architecture with a suspect's tensors, in float32. The suspect's own config is never read.

    Names may be those of a file or of a live model, under any prefix, or those of timm for transformers' architecture and the other way round.
    Further tensors are ignored, counters of BatchNorm may be missing.

    Args:
        record (`Mapping`):
            What [`backbone_record`] wrote.
        tensors (`Mapping[str, torch.Tensor]`):
            The suspect's tensors by file or live name.

    Raises:
        [`LayoutMismatch`]: when tensors are missing or have another shape (another architecture or label count).
        [`~serialization.UnreadableFormat`]: when one that is needed cannot be read, or several copies of the model are there.
    """
    model, lost, failures = _filled(record, tensors, whole=True)
    if lost:
        raise failures[0] if failures else LayoutMismatch(f"the suspect's {shown(lost[0])!r} cannot be loaded")
    return model.eval()


def named_on_backbone(record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    A suspect's tensors under the names that they have in a live model of the *owner's* architecture, float32. Those that it lacks, or that have another
    shape there (a new head), are left out.

    Raises:
        [`LayoutMismatch`], [`~serialization.UnreadableFormat`]: as [`run_on_backbone`], but for what is left out.
    """
    model, lost, _ = _filled(record, tensors, whole=False)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in lost}


def _filled(
    record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], whole: bool
) -> tuple["PreTrainedModel", list[str], list[UnreadableFormat]]:
    """The owner's architecture with what fits of the tensors, what does not, and why tensors could not be read."""
    from .loading import backbone_config, model_class_of

    config = backbone_config(record, "pass the suspect as a module or a callable")
    model_class: Any = model_class_of(config)
    shapes = shapes_in(tensors)
    attempt = _fitting(model_class, config, shapes)
    if attempt.lost and whole and (classes := _other_classes(model_class, config, attempt, shapes)):
        config.num_labels = classes
        attempt = _fitting(model_class, config, shapes)
    if attempt.lost and whole:
        raise LayoutMismatch(
            f"the suspect's tensors do not fit the owner's architecture or label count: {len(attempt.lost)} tensors are missing or "
            f"of another shape, first {shown(attempt.lost[0])!r}"
        )
    state, failures = {}, []
    renamed = Renamed(tensors, attempt.sources, _read)
    for name in attempt.sources:
        if name in attempt.unknown:
            continue
        try:
            state[name] = turned(renamed[name]) if attempt.turned else renamed[name]
        except UnreadableFormat as error:
            failures.append(error)
    model, lost, _ = _load(model_class, config, state)
    return model, lost, failures


def _other_classes(model_class: Any, config: Any, attempt: Attempt, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many classes the suspect has, if its head alone does not fit, and fits with another number of them; else 0."""
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in model_class(config).state_dict().items()}
    base = f"{model_class.base_model_prefix}."
    numbers = set()
    for name in attempt.lost:
        source = next(
            (attempt.sources[key] for key in (name, name.removeprefix(base), base + name) if key in attempt.sources),
            None,
        )
        own = wanted.get(name, wanted.get(base + name, ()))
        there = () if source is None else source.shape(shapes)
        if not own or not there or own[0] != config.num_labels or own[1:] != there[1:]:
            return 0
        numbers.add(there[0])
    return numbers.pop() if len(numbers) == 1 else 0


def gathered_model(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
    """The model itself, or a copy with the gathered weights of FSDP2 shards, if `record` (see [`backbone_record`]) says how to build one."""
    if not is_sharded(model) or not record:
        return model
    whole: nn.Module = run_on_backbone(record, {n: full_parameter(value) for n, value in model.state_dict().items()})
    return whole.to(next(model.parameters()).device)


def shapes_in(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, tuple[int, ...]]:
    """Shapes by name; of a file without reading it."""
    known = getattr(tensors, "shapes", None)
    return known if known is not None else {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _fitting(model_class: Any, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> Attempt:
    """The first spelling that fits, or the one that fits best."""
    attempts: list[Attempt] = []
    for prefix, sources in _spellings(model_class, config, shapes):
        attempt = _try(model_class, config, sources, shapes)
        attempts.append(attempt)
        # Without a prefix it is what the libraries load themselves; any other may be one of several copies.
        if not attempt.lost and not prefix:
            return attempt
    whole = {attempt.used: attempt for attempt in reversed(attempts) if not attempt.lost}
    if len(whole) > 1:
        raise UnreadableFormat(
            f"the suspect holds {len(whole)} complete copies of the model under different prefixes, and which one answers cannot be told; "
            "leave one of them"
        )
    return min(attempts, key=lambda attempt: len(attempt.lost), default=Attempt({}, ["every tensor"], set()))


def _spellings(
    model_class: Any, config: Any, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, dict[str, Source]]]:
    wanted = _names_of(model_class, config)
    base = f"{model_class.base_model_prefix}."
    for prefix in islice(prefixes_of(shapes, {*wanted, *(name.removeprefix(base) for name in wanted)}), MOST_TRIES):
        yield prefix, {name[len(prefix) :]: Source((name,)) for name in shapes if name.startswith(prefix)}
    yield from islice(ports(list(shapes), wanted), MOST_TRIES)


def _names_of(model_class: Any, config: Any) -> list[str]:
    try:
        with torch.device("meta"):
            return list(model_class(config).state_dict())
    except (RuntimeError, NotImplementedError):  # some layers compute with numbers while they are built
        return list(model_class(config).state_dict())


def _try(model_class: Any, config: Any, sources: dict[str, Source], shapes: Mapping[str, tuple[int, ...]]) -> Attempt:
    stand_ins = {name: torch.zeros(()).expand(source.shape(shapes)) for name, source in sources.items()}
    _, lost, info = _load(model_class, config, stand_ins)
    unknown = {str(name) for name in info["unexpected_keys"]}
    base = f"{model_class.base_model_prefix}."
    unknown |= {name for name in sources if base + name in unknown or name.removeprefix(base) in unknown}
    wrong = info["mismatched_keys"]
    if wrong and all(is_turned(tuple(there), tuple(wanted)) for _, there, wanted in wrong):
        others = {name: turned(tensor) for name, tensor in stand_ins.items()}
        _, lost_then, _ = _load(model_class, config, others)
        if len(lost_then) < len(lost):
            return Attempt(sources, lost_then, unknown, turned=True)
    return Attempt(sources, lost, unknown)


def _read(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    tensor = tensors[name]
    if tensor.dtype in (torch.int64, torch.bool):
        return tensor  # counters and indices
    return read_float(tensors, name).float()


def _load(model_class: Any, config: Any, state: dict[str, torch.Tensor]) -> tuple["PreTrainedModel", list[str], Any]:
    """The model, its tensors that are not in `state` or have another shape there, and transformers' own account."""
    with quietly():
        try:
            # Mismatches are refused by name; the library's own error only points to its log.
            model, info = model_class.from_pretrained(
                None, config=config, state_dict=state, output_loading_info=True, ignore_mismatched_sizes=True
            )
        except (RuntimeError, ValueError) as error:
            raise LayoutMismatch(
                f"the suspect's tensors do not fit the owner's architecture or label count: {str(error)[:300]}"
            ) from None
    lost = sorted({*info["missing_keys"], *(item[0] for item in info["mismatched_keys"])})
    return model, [name for name in lost if not name.endswith(COUNTER)], info


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' own report and progress bar: tries that fail are no news."""
    from transformers.utils import logging

    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()
