"""Keys for models that will be marked, in whatever loop."""

from typing import Any

from torch import nn

from ..configuration import WatermarkConfig, as_configs
from ..keys import Owner, WatermarkKey, refuse_unloaded
from ..mapping import AutoEmbedding, method_entry
from ..serialization import InvalidInput
from ..training.planning import make_key
from .batches import training_data


def plan_key(
    model: nn.Module,
    data: Any,
    configs: Any,
    owner: Owner,
    seed: bytes | None = None,
    processor: Any = None,
) -> WatermarkKey:
    """
    The key of a model that will be marked, without training: publish its precommit, bind it to a beacon of a later date, and give the bound
    key to the trainer.

    Args:
        model (`nn.Module`):
            As it is before the first step: its digest becomes part of the key.
        data (map-style dataset or [`~training.embedding.TrainingData`]):
            The training data, from which black-box methods take the sources of their triggers; `None` suffices for white-box methods. Its items
            are mappings with `pixel_values` and `labels`, or pairs of image and label.
        configs ([`WatermarkConfig`], `str` or `dict`, or a list of these):
            One per method that will mark the model: an object, the method's name (its defaults), or a dict of fields with the name under
            `method`.
        owner ([`Owner`]):
            Signs the commitment.
        seed (`bytes`, *optional*):
            32 secret bytes from which the key follows; drawn anew by default.
        processor (*optional*):
            Image processor of the model: its normalisation is committed.

    Returns:
        [`WatermarkKey`]: not bound yet, and saved nowhere.

    Raises:
        [`~serialization.InvalidInput`]: when there is no such method or field, or a mark does not fit into this model.
        `ValueError`: when the data are missing, or hold too few images of a class.

    Example:

    ```python
    >>> key = plan_key(model, ds, GreedyResidualsConfig(), owner)
    >>> value = bytes.fromhex("5d" * 32)  # looked up when the precommit was published
    >>> key = key.bind_beacon(value, "drand round 4711")
    >>> trainer = GreedyResidualsTrainer(model=model, args=args, train_dataset=ds, watermark=GreedyResidualsConfig(), key=key)
    ```
    """
    refuse_unloaded("owner", owner, Owner)
    marks = [(AutoEmbedding.for_method(config.method), config) for config in configs_of(configs)]
    return make_key(model, training_data(data), marks, owner, seed, processor)


def configs_of(given: Any) -> list[WatermarkConfig]:
    """
    Configs from objects, names and dicts, see [`~configuration.choosing.as_configs`].

    Raises:
        [`~serialization.InvalidInput`]: when there is no such method or field, or a method is named twice.
    """
    configs = as_configs(given, lambda method: method_entry(method).load("Config"))
    methods = [config.method for config in configs]
    for method in methods:
        if methods.count(method) > 1:
            raise InvalidInput(f"`{method}` is named twice: give one config per method")
    return configs
