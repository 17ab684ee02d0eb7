"""Config of WaterMAS."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from huggingface_hub.dataclasses import strict

from ...configuration import WatermarkConfig, require
from ...serialization import InvalidInput


MOST_PAYLOAD = 4096


@strict
@dataclass
class WaterMASConfig(WatermarkConfig):
    """
    Configuration of [`WaterMASTrainer`]: a white-box mark of single weights that are replaced, frozen, and surrounded by a loss that is
    trained to be sharp.

    Paper: De Sousa Trias et al., *WaterMAS: Sharpness-Aware Maximization for Neural
    Network Watermarking*, ICPR 2024 (our reconstruction from the abstract and a predecessor's code: the full paper could not be read). A mark
    is one sign per carrier; its magnitude is that of another weight of the same layer, so that it hides there.

    Args:
        bits (`int`, *optional*, defaults to 512):
            Evidence bits per sub-key, one carrier weight each, derived from the key. 512 reach level B with up to 30 % bit errors.
        subkeys (`int`, *optional*):
            Number of sub-keys to embed. By default as many as fit while at most 1 % of the carrier weights are replaced, at least 1 and
            at most 8.
        payload (`bytes` or `str`, *optional*):
            A message of your own (text is stored as UTF-8). It stands in the key and in every opening, so it is no secret, and it is no
            evidence: evidence are the key's own bits.
        repetition (`int`, *optional*, defaults to 5):
            Carrier weights per bit of the payload's code word (Reed-Solomon, about as many parity as payload bytes).
        switch_in (`float`, *optional*, defaults to 0.2):
            Share of the training after which the carriers are replaced, once the layers have found their scale; 0 replaces at once.
        lowest (`float`, *optional*, defaults to 0.5):
            A carrier's magnitude is that of a random weight of its layer between this quantile and the 99 % quantile of magnitudes.
        strength (`float`, *optional*, defaults to 0.2):
            Weight lambda of the sharpness against the task loss; 0 freezes the carriers only.
        radius (`float`, *optional*, defaults to 0.5):
            Root mean square of the ascent step, in units of the carriers' own root mean square in each layer.
        every (`int`, *optional*, defaults to 4):
            Optimizer steps per ascent; each one costs a second pass over the step's batch.
        direction (`str`, *optional*, defaults to `"ascent"`):
            `"ascent"` along the gradient, or `"random"` for comparison.
        layers (`list[str]`, *optional*):
            Carrier roles such as `"resnet.3"`, or tensor names, instead of every carrier of the family.
        preset (`str`, *optional*, defaults to `"default"`):
            `"paper"` ascends in each step.
    """

    method: ClassVar[str] = "watermas"

    bits: int = field(default=512, metadata={"help": "Evidence bits per sub-key, one carrier weight each."})
    subkeys: int | None = field(
        default=None, metadata={"help": "Number of sub-keys; as many as fit (1-8) by default."}
    )
    payload: bytes | str | None = field(default=None, metadata={"help": "A message of your own, not secret."})
    repetition: int = field(default=5, metadata={"help": "Carrier weights per bit of the payload's code word."})
    switch_in: float = field(default=0.2, metadata={"help": "Share of the training before carriers are replaced."})
    lowest: float = field(default=0.5, metadata={"help": "Smallest quantile of a carrier's magnitude in its layer."})
    strength: float = field(default=0.2, metadata={"help": "Weight of the sharpness against the task loss."})
    radius: float = field(default=0.5, metadata={"help": "Ascent step in units of the carriers' root mean square."})
    every: int = field(default=4, metadata={"help": "Optimizer steps per ascent."})
    direction: str = field(default="ascent", metadata={"help": "`ascent`, or `random` for comparison."})
    layers: list[str] | None = field(default=None, metadata={"help": "Carrier roles or tensor names to use."})
    preset: str = field(default="default", metadata={"help": "`default` or `paper`."})

    def __post_init__(self) -> None:
        if isinstance(self.payload, str):
            self.payload = self.payload.encode()
        require(1 <= self.bits <= 2**16, "bits", self.bits, "choose 1 to 65536; 512 is the default")
        require(self.subkeys is None or 1 <= self.subkeys <= 16, "subkeys", self.subkeys, "choose 1 to 16, or None")
        require(
            self.payload is None or 1 <= len(self.payload) <= MOST_PAYLOAD,
            "payload",
            self.payload,
            f"give 1 to {MOST_PAYLOAD} bytes, or leave it out",
        )
        require(1 <= self.repetition <= 64, "repetition", self.repetition, "choose 1 to 64; 5 is the default")
        require(0 <= self.switch_in < 1, "switch_in", self.switch_in, "choose a share in [0, 1); 0.2 is the default")
        require(0 <= self.lowest <= 0.95, "lowest", self.lowest, "choose a quantile in [0, 0.95]; 0.5 is the default")
        require(0 <= self.strength <= 10, "strength", self.strength, "choose 0 to 10; 0.2 is the default")
        require(0 < self.radius <= 10, "radius", self.radius, "choose a number in (0, 10]; 0.5 is the default")
        require(1 <= self.every <= 1000, "every", self.every, "choose 1 to 1000; 4 is the default")
        require(self.direction in ("ascent", "random"), "direction", self.direction, "choose 'ascent' or 'random'")
        require(
            self.layers is None or len(self.layers) > 0, "layers", self.layers, "name at least one, or leave it out"
        )
        require(self.preset in ("default", "paper"), "preset", self.preset, "choose 'default' or 'paper'")
        require(self.preset != "paper" or self.every == 1, "every", self.every, "preset 'paper' ascends in each step")

    @classmethod
    def paper(cls) -> "WaterMASConfig":
        """One ascent in each step, as in a plain sharpness-aware optimizer; twice the cost of a step."""
        return cls(every=1, preset="paper")

    def to_dict(self) -> dict[str, Any]:
        """As every [`WatermarkConfig`]; a payload is written as `{"hex": ...}`."""
        # JSON has no bytes; text would not say whether it is hexadecimal.
        payload = self.payload and {"hex": bytes(self.payload).hex()}  # type: ignore[arg-type]
        return super().to_dict() | {"payload": payload}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        payload = data.get("payload")
        if isinstance(payload, dict):
            try:
                data = data | {"payload": bytes.fromhex(dict(payload).pop("hex"))}
            except (KeyError, TypeError, ValueError):
                raise InvalidInput("config: `payload` must be text or {'hex': '...'}") from None
        return super().from_dict(data)
