"""What an attack is and costs, as columns of the table."""

from typing import Any

from ...attacks import Attack


def attack_options(attack: Attack) -> dict[str, Any]:
    """Name and options as plain JSON; how much is printed does not matter."""
    return {name: value for name, value in attack.options().items() if name != "progress"}


def attack_budget(attack: Attack, images: Any) -> dict[str, Any]:
    """Passes over the attacker's data, different images, optimizer steps, images through a net, and questions to the marked model."""
    spent = attack.budget(images)
    return {
        "epochs": float(getattr(attack, "epochs", 0) or getattr(attack, "finetune_epochs", 0)),
        "attacker_images": spent["images"],
        **{name: spent[name] for name in ("steps", "examples", "queries")},
    }
