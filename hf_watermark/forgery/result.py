"""What a forgery comes to, and the fresh key that a forger starts from."""

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from ..evidence import Evidence
from ..keys import Owner, WatermarkKey


@dataclass
class ForgeryResult:
    """
    The outcome of one attempt to make a false claim pass.

    Args:
        name (`str`):
            Short name of the forgery.
        attempt (`str`):
            What the forger did, in words.
        evidence ([`Evidence`], *optional*):
            Evidence of the false claim, as a judge would get it. `None` when nothing was tested.
        refused (`str`, *optional*):
            Why the claim was refused before the suspect was looked at; `None` when it was admitted and tested.
        details (`dict`):
            JSON values: what the forger reached, and what he would have reached without the check.
        model ([`~transformers.PreTrainedModel`], *optional*):
            The model that the forger made, for forgeries that make one.
        key ([`WatermarkKey`], *optional*):
            The forger's own key.
    """

    name: str
    attempt: str
    evidence: Evidence | None = None
    refused: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    model: PreTrainedModel | None = field(default=None, repr=False)
    key: WatermarkKey | None = field(default=None, repr=False)

    @property
    def passed(self) -> bool:
        """Whether the false claim was accepted."""
        return self.evidence is not None and self.evidence.found

    def to_dict(self) -> dict[str, Any]:
        """JSON for people; never the key or the model."""
        return {
            "name": self.name,
            "attempt": self.attempt,
            "refused": self.refused,
            "passed": self.passed,
            "details": self.details,
            "evidence": None if self.evidence is None else self.evidence.to_dict(),
        }


def fresh_key(template: WatermarkKey, forger: Owner | None = None, **changes: Any) -> WatermarkKey:
    """
    A key that nobody embedded: a new seed under the public layout of `template`, signed by `forger` (a new owner by default).

    Args:
        changes:
            Other values for `pool`, or for the `plans` of [`WatermarkKey.create`].
    """
    plans = [(item.method, item.version, item.config, item.layout, len(item.subkeys)) for item in template.assignments]
    options = {"plans": plans, "pool": template.pool, **changes}
    return WatermarkKey.create(forger or Owner.create(), count=template.count, context=template.context, **options)


def require_method(key: WatermarkKey, method: str) -> int:
    """
    Position of the method's assignment in the key.

    Raises:
        `ValueError`: when the key does not mark with this method.
    """
    methods = [assignment.method for assignment in key.assignments]
    if method not in methods:
        raise ValueError(f"this forgery is about `{method}`, the key marks with {methods}; give a key of that method")
    return methods.index(method)
