"""What `watermark=` and `plan_key` take for a config: an object, a name, a dict, nothing."""

from types import SimpleNamespace

import pytest
from tiny import patterned_images, tiny_resnet

from hf_watermark import (
    AutoTrainer,
    FunctionCoupledTrainer,
    GreedyResidualsConfig,
    GreedyResidualsTrainer,
    InvalidInput,
    Owner,
    plan_key,
    stack_trainers,
)
from hf_watermark.mapping import METHODS


FIELDS = {"bits": 128, "subkeys": 1, "group_size": 16}
CONFIG = GreedyResidualsConfig(**FIELDS)


@pytest.fixture
def make(arguments, owner):
    def trainer(watermark, trainer_class=GreedyResidualsTrainer, **identity):
        data = patterned_images(300)
        identity = identity or {"owner": owner}
        return trainer_class(
            model=tiny_resnet(), args=arguments(), train_dataset=data, watermark=watermark, **identity
        )

    return trainer


@pytest.mark.parametrize(
    "given",
    [CONFIG, [CONFIG], FIELDS, FIELDS | {"method": "greedy_residuals"}, CONFIG.to_dict(), (CONFIG.to_dict(),)],
    ids=["config", "list", "fields", "named fields", "document", "tuple"],
)
def test_every_spelling_of_one_config_makes_the_same_key(make, given, owner):
    [assignment] = make(given).key.assignments
    assert assignment.config == CONFIG.to_dict()
    named = given if given is not FIELDS else FIELDS | {"method": "greedy_residuals"}
    assert plan_key(tiny_resnet(), None, named, owner).assignments[0].config == CONFIG.to_dict()


@pytest.mark.parametrize("method", METHODS)
def test_a_name_and_nothing_are_the_defaults(method):
    # The trainer's own step from what was given to configs: the defaults of some methods need more images than a test has.
    trainer_class = AutoTrainer.for_method(method)
    blank = trainer_class.__new__(trainer_class)
    default = METHODS[method].load("Config")()
    for given in (None, method, [method], {"method": method}, {}):
        assert blank._sorted_configs(given) == [default]


def test_nothing_means_the_configs_of_a_key_that_is_given(make, owner):
    rules = {"method": "function_coupled", "pool_per_class": 4, "images_per_rule": 4}
    key = plan_key(tiny_resnet(), patterned_images(300), [CONFIG, rules], owner)
    stacked = stack_trainers(GreedyResidualsTrainer, FunctionCoupledTrainer)
    trainer = make(None, stacked, key=key)
    assert [config.to_dict() for config in trainer._configs] == [item.config for item in key.assignments]
    with pytest.raises(InvalidInput, match="GreedyResidualsTrainer does not mark with 'function_coupled'"):
        make(None, key=key)


def test_a_stack_takes_names_and_dicts_in_any_order(make):
    stacked = stack_trainers(GreedyResidualsTrainer, FunctionCoupledTrainer)
    blank = stacked.__new__(stacked)
    configs = blank._sorted_configs([{"method": "function_coupled", "rules": 5}, "greedy_residuals"])
    assert [config.method for config in configs] == ["greedy_residuals", "function_coupled"] and configs[1].rules == 5
    assert blank._sorted_configs(None) == blank._sorted_configs(["function_coupled", "greedy_residuals"])
    with pytest.raises(InvalidInput, match="does not say of which method it is; add 'method'"):
        make({"bits": 128}, stacked)
    with pytest.raises(ValueError, match=r"needs one for each of \['function_coupled', 'greedy_residuals'\]"):
        make("greedy_residuals", stacked)


WRONG = [
    ("greedy_residual", "'greedy_residual'.*: did you mean 'greedy_residuals'. choose one of"),
    ("GREEDY_RESIDUALS", "did you mean 'greedy_residuals'"),
    ({"method": "greedy_residuals", "bit": 128}, "config: unknown field 'bit' .* did you mean 'bits'"),
    ({"method": "greedy_residuals", "bits": 0}, "config: `bits` is 0: choose 1 to 65536"),
    ({"method": 5}, "does not say of which method"),
    ([None], "None is no config; give a config such as"),
    ([], "no method was named; give a config such as"),
    (5, "5 is no config; give a config such as"),
    (GreedyResidualsConfig, r"GreedyResidualsConfig is a class: write GreedyResidualsConfig\(\)"),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_what_is_none_of_these_is_one_sentence(make, given, message, owner):
    for attempt in (make, lambda given: plan_key(tiny_resnet(), None, given, owner)):
        with pytest.raises(InvalidInput, match=message):
            attempt(given)


def test_where_no_trainer_says_the_method_it_has_to_be_named(owner: Owner):
    for given in (None, FIELDS):
        with pytest.raises(InvalidInput, match="None is no config|does not say of which method"):
            plan_key(SimpleNamespace(), None, given, owner)
