"""`TrainingArguments(torch_compile=True)`: every method trains the same model, whether its forward pass is compiled or not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import patterned_images, tiny_resnet
from torch._dynamo.utils import counters

from hf_watermark import AutoTrainer, Owner, WatermarkKey
from hf_watermark.mapping import METHODS


@pytest.fixture
def train(arguments, small_configs) -> Callable[..., Any]:
    data = patterned_images(variety=0.3)

    def run(method: str, key: WatermarkKey | None, **changes: Any) -> Any:
        fields: dict[str, Any] = {"watermark": small_configs[method], "train_dataset": data}
        owner = {"key": key} if key is not None else {"owner": Owner.create()}
        trainer = AutoTrainer.for_method(method)(
            model=tiny_resnet(), args=arguments(max_steps=6, save_strategy="no", **changes), **fields, **owner
        )
        trainer.train()
        return trainer

    return run


@pytest.mark.parametrize("method", METHODS)
def test_compiled_training_in_mixed_precision_ends_at_the_same_weights(train, method):
    plain = train(method, None, bf16=True)
    torch._dynamo.reset()
    counters.clear()
    # The whole compiler but its last stage, which would only change the speed.
    compiled = train(method, plain.key, bf16=True, torch_compile=True, torch_compile_backend="aot_eager")

    assert counters["stats"]["unique_graphs"] >= 1 and not counters["graph_break"]
    start, expected = tiny_resnet().state_dict(), plain.model.state_dict()
    for name, value in compiled.model.state_dict().items():
        if value.is_floating_point():  # another key moves some tensor by at least 0.6 of this
            moved = (expected[name] - start[name]).norm()
            assert (value - expected[name]).norm() <= 0.02 * moved + 1e-6, name
