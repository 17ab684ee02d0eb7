"""What a mark that was written into finished weights costs: the file that `hf-watermark mark` leaves, and its line in the card."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ..serialization import InvalidInput, SafetensorsFolder, named_tensors_digest, read_json, write_json_atomic
from ..serialization.schema import Hex32, Strict, Text, validated
from .statement import Statement


COST = "fidelity.json"
COST_BYTES = 2**20
SCHEMA: Literal["hf-watermark/fidelity/v1"] = "hf-watermark/fidelity/v1"
Figure = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Cost(Strict):
    """The fields of [`~marking.FidelityReport`], and the digest of the tensors that were measured."""

    schema_: Annotated[Literal["hf-watermark/fidelity/v1"], Field(alias="schema")]
    named_tensors_sha256: Hex32
    kl: Figure
    agreement: Annotated[Figure, Field(le=1)]
    images: Annotated[int, Field(ge=1, le=2**31)]
    synthetic: bool
    layers: Annotated[dict[Text, Figure], Field(max_length=20_000)]


def write_cost(folder: Path, fidelity: dict[str, Any]) -> None:
    """Writes the file beside the marked weights."""
    digest = named_tensors_digest(SafetensorsFolder(folder))
    write_json_atomic(folder / COST, {"schema": SCHEMA, "named_tensors_sha256": digest} | fidelity)


def cost_line(folder: Path, statement: Statement) -> str | None:
    """
    The file's figures in words; `None` where there is none.

    Raises:
        [`~serialization.InvalidInput`]: when it is malformed, or was measured on other weights than the statement's.
    """
    path = folder / COST
    if path.is_symlink() or not path.is_file():
        return None
    found = validated(Cost, read_json(path, COST_BYTES, allow_floats=True), str(path))
    if found.named_tensors_sha256 != statement.weights.named_tensors_sha256:
        raise InvalidInput(f"{path}: was measured on other weights than these")
    return in_words(found.kl, found.agreement, found.images, found.synthetic)


def in_words(kl: float, agreement: float, images: int, synthetic: bool) -> str:
    on = f"{images} synthetic pictures (a forecast)" if synthetic else f"{images} images"
    return f"KL {kl:.2g} and {100 * agreement:.1f} % the same answers on {on}"
