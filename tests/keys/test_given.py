"""A path or another object where a loaded key or owner belongs."""

import pytest
from tiny import tiny_resnet, training_arguments

from hf_watermark import GreedyResidualsTrainer, InvalidInput, Owner, plan_key, verify, verify_sequentially


def test_what_was_not_loaded_is_one_sentence(tmp_path):
    wanted = r"`key` is 'keys/my-model': give what WatermarkKey.load\(...\) or Opening.load\(...\) returns"
    for check in (verify, verify_sequentially):
        with pytest.raises(InvalidInput, match=wanted):
            check(tiny_resnet(), "keys/my-model")
    train = {"model": tiny_resnet(), "args": training_arguments(tmp_path), "watermark": "greedy_residuals"}
    with pytest.raises(InvalidInput, match=r"`key` is 'keys/my-model': give what WatermarkKey.load\(...\) returns"):
        GreedyResidualsTrainer(**train, key="keys/my-model")
    for other in ("owner.json", Owner):
        with pytest.raises(InvalidInput, match=r"`owner` is .*: give what Owner.load\(...\) returns"):
            GreedyResidualsTrainer(**train, owner=other)
        with pytest.raises(InvalidInput, match=r"`owner` is .*: give what Owner.load\(...\) returns"):
            plan_key(tiny_resnet(), None, "greedy_residuals", other)
