"""Keys made before any trainer is."""

import logging
from pathlib import Path

import pytest
from tiny import patterned_images, tiny_resnet

from hf_watermark import (
    AutoTrainer,
    GreedyResidualsConfig,
    InvalidInput,
    Owner,
    WatermarkKey,
    WaterMASConfig,
    mark_model,
    plan_key,
)
from hf_watermark.mapping import METHODS, AutoEmbedding
from hf_watermark.training.embedding import Embedding, Moment, nested, unchanged


SEED = bytes(range(32))
every_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture
def data():
    return patterned_images(variety=0.3)


@every_method
def test_a_planned_key_is_the_one_of_the_trainer(method, data, small_configs, arguments, tmp_path):
    config, owner = small_configs[method], Owner.create()
    key = plan_key(tiny_resnet(), data, config, owner, SEED)
    assert plan_key(tiny_resnet(), data, config, owner, SEED).precommit == key.precommit
    assert plan_key(tiny_resnet(), data, config, owner).precommit != key.precommit
    bound = key.bind_beacon(b"\x07" * 32, "a value of a test")
    trainer = AutoTrainer.for_method(method)(
        model=tiny_resnet(), args=arguments(), train_dataset=data, watermark=config, key=bound
    )
    assert trainer.key.precommit == key.precommit
    bound.save(tmp_path / "key", passphrase="a long enough passphrase")
    loaded = WatermarkKey.load(tmp_path / "key", "a long enough passphrase")
    assert (loaded.precommit, loaded.beacon) == (key.precommit, bound.beacon)
    own = AutoTrainer.for_method(method)(
        model=tiny_resnet(), args=arguments(), train_dataset=data, watermark=config, owner=owner
    )
    assert (own.key.context.start, own.key.context.classes) == (key.context.start, key.context.classes)
    assert [item.layout.keys() for item in own.key.assignments] == [item.layout.keys() for item in key.assignments]


@every_method
def test_only_black_box_methods_need_data(method, small_configs, owner):
    if METHODS[method].access == "weights":
        assert plan_key(tiny_resnet(), None, small_configs[method], owner).claims()
    else:
        with pytest.raises(ValueError, match="`train_dataset` is missing"):
            plan_key(tiny_resnet(), None, small_configs[method], owner)


def test_several_methods_share_a_tree(data, small_configs, owner):
    key = plan_key(tiny_resnet(), data, list(small_configs.values()), owner)
    assert [item.method for item in key.assignments] == list(small_configs)
    indices = [index for item in key.assignments for index in item.subkeys]
    assert sorted(indices) == list(range(len(indices)))


def test_soft_label_methods_stack_without_sharing_a_template(data, small_configs, arguments, owner):
    key = plan_key(tiny_resnet(), data, [small_configs["usp"], small_configs["csp"]], owner)
    usp, csp = (AutoEmbedding.for_method(c.assignment.method)(tiny_resnet(), c) for c in key.claims())
    assert usp._template is not csp._template and (usp.method, csp.method) == ("usp", "csp")


def test_what_embeddings_do_around_a_step_nests():
    seen = []

    class Twice(Embedding):
        def __init__(self, factor):
            self.factor, self.moment = factor, Moment()

        def around_step(self, step):
            step()
            return step(lambda loss: self.factor * loss)

    def one_pass(change=unchanged):
        seen.append(change(1))
        return seen[-1]

    assert nested(Twice(2), nested(Twice(3), one_pass))() == 6
    assert seen == [1, 3, 2, 6]


def test_seeds_follow_from_the_moment():
    draw = Moment(3, 10, 1, 2).seed
    assert draw(b"secret", b"mask") == Moment(3, 99, 1, 0).seed(b"secret", b"mask") != draw(b"secret", b"rule")
    others = [Moment(4, 10, 1), Moment(3, 10, 0)]
    assert len({draw(b"s", b"p"), draw(b"s", b"p", 1), *(moment.seed(b"s", b"p") for moment in others)}) == 4


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ([{"bits": 64, "subkeys": 1}], "only one sub-key of 64 bits"),
        ([{"bits": 256}], "only one sub-key of 256 bits"),
        ([{"bits": 64, "subkeys": 2}], None),
        ([{"bits": 64, "subkeys": 2}, {"bits": 64, "subkeys": 1}], None),
    ],
)
def test_a_single_subkey_is_told_before_training(owner, caplog, wanted, words):
    configs = [GreedyResidualsConfig(group_size=32, **fields) for fields in wanted[:1]]
    configs += [WaterMASConfig(**fields) for fields in wanted[1:]]
    with caplog.at_level(logging.WARNING, logger="hf_watermark"):
        key = plan_key(tiny_resnet(), None, configs, owner)
    assert caplog.text.count("in one dispute or to one service only") == (words is not None)
    if words is not None:
        assert key.used == [0] and words in caplog.text


@pytest.mark.parametrize("name", ["plain-model", Path("plain-model")])
def test_a_model_has_to_be_loaded_first(owner, arguments, name):
    config = GreedyResidualsConfig()
    trainer = AutoTrainer.for_method("greedy_residuals")
    for attempt in (
        lambda: plan_key(name, None, config, owner),
        lambda: mark_model(name, config, owner),
        lambda: trainer(model=name, args=arguments(), watermark=config, owner=owner),
        lambda: trainer(name, arguments(), watermark=config, owner=owner),
    ):
        with pytest.raises(
            InvalidInput, match=r"`model` is 'plain-model': load it first, .*from_pretrained\('plain-model'\)"
        ):
            attempt()
