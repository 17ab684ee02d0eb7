"""Every way in which a stranger may alter a document or a pool, one field at a time."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import torch


Place = tuple[Any, ...]
Tensors = dict[str, torch.Tensor]


def altered_documents(document: Any, closed: str | None = None) -> Iterator[tuple[str, Any]]:
    """
    Copies of a JSON document in which one field, however deep, has one of eight other values, with a name for each. What lies inside the
    `closed` field is altered as a whole only.
    """
    for place in places(document, closed):
        for number, value in enumerate(other_values(at(document, place))):
            changed = copy.deepcopy(document)
            at(changed, place[:-1])[place[-1]] = value
            if json.dumps(changed, sort_keys=True) != json.dumps(document, sort_keys=True):
                yield f"{'.'.join(map(str, place))} #{number}: {value!r:.60}", changed


def places(document: Any, closed: str | None, above: Place = ()) -> Iterator[Place]:
    """Where every value lies, containers first."""
    inside = document.items() if isinstance(document, dict) else enumerate(document)
    for name, value in inside:
        yield (*above, name)
        if isinstance(value, dict | list) and name != closed:
            yield from places(value, closed, (*above, name))


def at(document: Any, place: Place) -> Any:
    for name in place:
        document = document[name]
    return document


def other_values(value: Any) -> list[Any]:
    """Eight other values: another type, a neighbour, empty, huge, negative, in another order, duplicated, null."""
    if isinstance(value, bool):
        return [str(value), not value, 0, 1, 2**70, -1, [value], None]
    if isinstance(value, int | float):
        return [str(value), value + 1, "", 10**30, -value - 1, value + 0.5, [value, value], None]
    if isinstance(value, str):
        near = chr(ord(value[0]) ^ 1) + value[1:] if value else "0"
        return [7, near, "", value * 5000 or "0" * 10_000, f"-{value}", value[::-1], value * 2, None]
    if isinstance(value, list):
        return [{}, value[:-1], [], value * 2000, [-1], value[::-1], value * 2, None]
    if isinstance(value, dict):
        extra, fewer = value | {"": 0}, dict(list(value.items())[1:])
        renamed = {f"{name}x": item for name, item in value.items()}
        moved = dict(zip(value, list(value.values())[::-1], strict=True))
        return [[], fewer, {}, extra, renamed, moved, [value, value], None]
    return [0, 1, "", [], {}, False, "null", -1]


def altered_pools(pool: Tensors) -> Iterator[tuple[str, Tensors]]:
    """Pools in which one tensor has other values, another type, shape, order or name, is missing or doubled, and pools with one more."""
    for name, tensor in pool.items():
        for what, changed in other_tensors(tensor).items():
            same = changed.dtype == tensor.dtype and changed.shape == tensor.shape and torch.equal(changed, tensor)
            if not same:
                yield f"{name}: {what}", pool | {name: changed}
        others = {other: item for other, item in pool.items() if other != name}
        yield f"{name}: missing", others
        yield f"{name}: renamed", others | {f"{name}x": tensor}
        yield f"{name}: of no method", others | {name.partition(".")[2]: tensor}
        yield f"{name}: doubled", pool | {f"{name}.again": tensor.clone()}
        for other in others:
            yield f"{name} and {other}: swapped", pool | {name: pool[other], other: tensor}
    yield "empty", {}


def other_tensors(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Eight others: neighbour value, zeros, negative, huge, another type, another shape, another order, duplicated rows."""
    near, huge = tensor.clone(), tensor.clone()
    near.view(-1)[0] += 1
    huge.view(-1)[0] = torch.finfo(tensor.dtype).max if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max
    return {
        "one value": near,
        "zeros": torch.zeros_like(tensor),
        "negative": -tensor,
        "huge": huge,
        "another type": tensor.to(torch.float64 if tensor.dtype != torch.float64 else torch.float32),
        "another shape": tensor.reshape(1, *tensor.shape),
        "another order": tensor.flip(0).contiguous(),
        "duplicated": torch.cat([tensor, tensor]),
    }


def altered_answers(probabilities: torch.Tensor) -> dict[str, Any]:
    """What an endpoint might give instead of probabilities `[n, classes]`, all of it without the mark."""
    count, classes = probabilities.shape
    random = torch.rand(count, classes, generator=torch.Generator().manual_seed(count)).softmax(dim=1)
    labels = random.argmax(dim=1)
    return {
        "labels": labels,
        "lists": random.tolist(),
        "text": ["cat"] * count,
        "null": None,
        "empty": [],
        "too few": random[:-1],
        "too many": torch.cat([random, random]),
        "another number of classes": random[:, :-1],
        "logits": random * 1000 - 500,
        "huge": torch.full_like(random, 1e308, dtype=torch.float64),
        "negative": -random,
        "not a number": torch.full_like(random, torch.nan),
        "infinite": torch.full_like(random, torch.inf),
        "one class": torch.zeros(count, dtype=torch.long),
        "a class that does not exist": torch.full((count,), classes),
        "a huge class": torch.full((count,), 2**62),
        "no class": torch.full((count,), -1),
        "booleans": torch.ones(count, dtype=torch.bool),
        "complex": random.to(torch.complex64),
        "float labels": labels.float(),
        "other axes": random.T.contiguous(),
        "a scalar": 3,
        "ragged": [[0.5], *[[0.5, 0.5]] * (count - 1)],
        "none of them": [None] * count,
        "dictionaries": [{"label": 1}] * count,
    }
