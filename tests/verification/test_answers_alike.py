"""Questions that a suspect cannot read get one answer: the owner is told."""

import torch
from tiny import patterned_images, tiny_resnet

from hf_watermark import FunctionCoupledConfig, Owner, plan_key, verify
from hf_watermark.verification.verifier import said_alike


def test_a_suspect_that_gives_one_answer_is_told_of():
    key = plan_key(tiny_resnet(), patterned_images(), FunctionCoupledConfig(pool_per_class=4), Owner.create())

    def says_seven(images):
        return torch.nn.functional.one_hot(torch.full((len(images),), 7), 10).float()

    def says_many(images):
        return torch.nn.functional.one_hot((images.sum(dim=(1, 2, 3)) * 1e3).long() % 10, 10).float()

    told = verify(says_seven, key)
    assert not told.found and "nearly all answers are class 7" in " ".join(told.warnings)
    assert "nearly all" not in " ".join(verify(says_many, key).warnings)


def test_few_answers_tell_nothing():
    assert said_alike(torch.zeros(39)) == [] and said_alike(torch.full((100,), -1)) == []
    assert said_alike(torch.tensor([3] * 89 + [1] * 11)) == [] and said_alike(torch.tensor([3] * 91 + [1] * 9))
