"""What every disguise is checked for: its answers are the marked model's, and it is read, or it is said why it cannot be."""

import copy
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hf_watermark import Evidence, Verdict, WatermarkKey, verify
from hf_watermark.claims import Disclosure, judge


State = dict[str, torch.Tensor]
NONCE = "evasion"
# How a suspect is looked at; see `look`.
WAYS = ["folder", "judge", "ranges", "reference"]
IMAGES = torch.randn(16, 1, 32, 32, generator=torch.Generator().manual_seed(3))


@dataclass(frozen=True)
class Suspicion:
    """A marked model, its key, the beacon that the verifier looked up, and what it was published with."""

    model: Any
    key: WatermarkKey
    beacon: bytes | None
    dated: Any

    @property
    def state(self) -> State:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


@dataclass(frozen=True)
class Disguise:
    """
    One way to store a marked model.

    Args:
        make (`Callable`):
            From the state dict to the tensors of the file, or, given a folder as well, to files in it.
        load (`Callable`):
            How somebody who uses the file gets the tensor of a name: `load(get, name)`, where `get` reads from the file.
        why (`str`, *optional*):
            Words of the reason if it cannot be read.
        tolerance (`float`):
            Largest change of a logit; more than 1e-4 only where the file rounds.
    """

    make: Callable[..., State | None]
    load: Callable[[Callable[[str], torch.Tensor], str], torch.Tensor] = lambda get, name: get(name)
    why: str | None = None
    tolerance: float = 1e-4

    def write(self, state: State, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        files = self.make(state, folder) if self.make.__code__.co_argcount == 2 else self.make(state)
        if files is not None:
            save_file({name: t.contiguous().clone() for name, t in files.items()}, folder / "model.safetensors")
        return folder

    def difference(self, suspicion: Suspicion, folder: Path) -> float:
        """Largest difference to the marked model's logits, when the file is loaded as `load` says."""
        model = copy.deepcopy(suspicion.model)
        get = reader(folder)
        # A counter of steps may be missing, as for the libraries.
        names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
        model.load_state_dict({name: self.load(get, name) for name in names}, strict=False)
        with torch.no_grad():
            return float((model(IMAGES).logits - suspicion.model(IMAGES).logits).abs().max())


def reader(folder: Path) -> Callable[[str], torch.Tensor]:
    places = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            places |= dict.fromkeys(handle.keys(), file)

    def get(name: str) -> torch.Tensor:
        with safe_open(places[name], framework="pt") as handle:
            return handle.get_tensor(name)

    return get


def write_raw(folder: Path, entries: list[tuple[str, str, tuple[int, ...], bytes]]) -> None:
    """`model.safetensors` with tensors in this order, of types that the library's writer does not know too."""
    header, place = {}, 0
    for name, dtype, shape, data in entries:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + len(data)]}
        place += len(data)
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", len(raw)) + raw + b"".join(item[3] for item in entries)
    )


def stored(state: Mapping[str, torch.Tensor]) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    kinds = {torch.float32: "F32", torch.int64: "I64"}
    return [(n, kinds[t.dtype], tuple(t.shape), t.contiguous().numpy().tobytes()) for n, t in state.items()]


def look(suspicion: Suspicion, folder: Path, way: str, hub: Any = None) -> tuple[Verdict, str]:
    """Verdict and reason by one of the ways on which a suspect is looked at."""
    if way == "judge":
        dated = suspicion.dated
        opened = Disclosure.make(dated.shop.key, dated.shop.owner, 1, NONCE)
        later = datetime.now(UTC) + timedelta(days=1)
        result = judge(opened, folder, dated.folder, NONCE, dated.roots, suspect_time=later, drawn=True)
        return result.verdict, result.reason
    evidence: Evidence
    if way == "reference":
        evidence = verify(
            folder,
            suspicion.key,
            beacon=suspicion.beacon,
            reference=copy.deepcopy(suspicion.model),
            own_reference=True,
        )
    elif way == "ranges":
        hub.add_folder("you/suspect", folder)
        evidence = verify("you/suspect", suspicion.key, beacon=suspicion.beacon)
    else:
        evidence = verify(folder, suspicion.key, beacon=suspicion.beacon)
    return evidence.verdict, evidence.reason


def check(disguise: Disguise, suspicion: Suspicion, folder: Path, way: str, hub: Any = None) -> None:
    disguise.write(suspicion.state, folder)
    assert disguise.difference(suspicion, folder) <= disguise.tolerance
    verdict, reason = look(suspicion, folder, way, hub)
    if disguise.why is None:
        assert verdict is Verdict.FOUND, (verdict, reason)
    elif way in ("reference", "judge") and (verdict is Verdict.FOUND or "counts as a self-check only" in reason):
        return  # what a direct reading can only name, an alignment may undo
    else:
        assert verdict is Verdict.INCONCLUSIVE and disguise.why in reason, (verdict, reason)
