"""Several attacks, one after the other."""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import PreTrainedModel

from .base import Attack


@dataclass
class Stack(Attack):
    """
    Run attacks in sequence, each on what the one before it left. Its option holds attacks, so it is made in Python and is not in
    `ATTACKS`.

    Args:
        attacks (`list[Attack]`):
            The attacks, in order.
    """

    name: ClassVar[str] = "stack"

    attacks: tuple[Attack, ...] = ()

    def __post_init__(self) -> None:
        listed = isinstance(self.attacks, list | tuple) and all(isinstance(item, Attack) for item in self.attacks)
        self._check(listed and len(self.attacks) > 0, "attacks", "give a list of at least one attack")
        self.needs_data = any(item.needs_data for item in self.attacks)  # type: ignore[misc]
        self.reads_labels = any(item.reads_labels for item in self.attacks)  # type: ignore[misc]

    def budget(self, data: Any = None) -> dict[str, int]:
        budgets = [item.budget(data) for item in self.attacks]
        # The images are the same ones each time.
        return {name: (max if name == "images" else sum)(one[name] for one in budgets) for name in budgets[0]}

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        for attack in self.attacks:
            model = attack.apply(model.eval(), data)
        return model
