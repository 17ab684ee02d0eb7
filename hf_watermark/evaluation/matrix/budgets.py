"""What an attack is and costs, as columns of the table."""

import math
from typing import Any

from ...attacks import Attack, Distill


def attack_options(attack: Attack) -> dict[str, Any]:
    """Name and options as plain JSON; how much is printed does not matter."""
    described = attack.options() if hasattr(attack, "options") else {"name": attack.name} | vars(attack)
    return {name: value for name, value in described.items() if name != "progress"}


def attack_budget(attack: Attack, images: Any) -> dict[str, Any]:
    """Passes over the attacker's data, different images, optimizer steps, images through a net, and questions to the marked model."""
    epochs = float(getattr(attack, "epochs", 0) or getattr(attack, "finetune_epochs", 0))
    spent = attack.budget(images) if hasattr(attack, "budget") else _training_budget(attack, len(images), epochs)
    return {
        "epochs": epochs,
        "attacker_images": spent["images"],
        **{name: spent[name] for name in ("steps", "examples", "queries")},
    }


def _training_budget(attack: Attack, images: int, epochs: float) -> dict[str, int]:
    if not epochs:
        return dict.fromkeys(("images", "steps", "examples", "queries"), 0)
    steps = math.ceil(epochs * math.ceil(images / vars(attack)["batch_size"]))
    examples = math.ceil(epochs * images)
    # Each pass asks the teacher again, on newly augmented images.
    return {
        "images": images,
        "steps": steps,
        "examples": examples,
        "queries": examples if isinstance(attack, Distill) else 0,
    }
