"""Every field of every method's config refuses what it cannot be, when the config is made, in a sentence that names field and value."""

import copy
import dataclasses
import math
import pickle
import reprlib

import pytest

from hf_watermark import InvalidInput
from hf_watermark.mapping import METHODS


CONFIGS = {method: entry.load("Config") for method, entry in METHODS.items()}
FIELDS = [(method, field) for method, config in CONFIGS.items() for field in dataclasses.fields(config)]
NUMBERS = [(method, field) for method, field in FIELDS if field.type in (int, float, int | None)]
NAMES = [f"{method}.{field.name}" for method, field in NUMBERS]
NO_NUMBERS = [math.nan, math.inf, -math.inf, -1, 10**30, 10**400, "1", "", True, [1], {}, b"1"]


def refused(method, **fields):
    """The sentence, which is the same from a file."""
    with pytest.raises(ValueError) as made:  # noqa: PT011
        CONFIGS[method](**fields)
    with pytest.raises(InvalidInput) as read:
        CONFIGS[method].from_dict(CONFIGS[method]().to_dict() | fields)
    assert str(read.value) == f"config: {made.value}"
    return str(made.value)


@pytest.mark.parametrize(("method", "field"), NUMBERS, ids=NAMES)
@pytest.mark.parametrize("value", NO_NUMBERS, ids=reprlib.repr)
def test_a_number_that_a_field_cannot_be(method, field, value):
    message = refused(method, **{field.name: value})
    if value != 10**400 or field.type is not float:  # the nearest float is infinite
        stored = float(value) if field.type is float and type(value) is int else value
        assert message.startswith(f"`{field.name}` is {reprlib.repr(stored)}: ")
    assert message.partition(": ")[2].startswith(("choose ", "give "))


@pytest.mark.parametrize(("method", "field"), NUMBERS, ids=NAMES)
def test_whole_numbers_stay_whole_and_do_for_reals(method, field):
    if field.type is not float:
        assert "give a whole number" in refused(method, **{field.name: 2.0})
        return
    try:
        assert type(getattr(CONFIGS[method](**{field.name: 1}), field.name)) is float
    except ValueError as error:  # a share below 1
        assert str(error).startswith(f"`{field.name}` is 1.0: choose ")


@pytest.mark.parametrize(("method", "field"), FIELDS)
def test_a_misspelt_field_is_answered_with_the_right_one(method, field):
    message = refused(method, **{field.name + "s_": CONFIGS[method]().to_dict()[field.name]})
    assert (
        f"unknown field '{field.name}s_' for method {method!r}: did you mean {field.name!r}? choose one of" in message
    )


@pytest.mark.parametrize("method", METHODS)
def test_fields_by_position_and_copies_are_configs_like_any_other(method):
    config = CONFIGS[method]()
    values = [getattr(config, field.name) for field in dataclasses.fields(config)]
    for other in (CONFIGS[method](*values), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other == config
    with pytest.raises(ValueError, match="give "):
        CONFIGS[method](object())
    with pytest.raises(TypeError, match="positional"):
        CONFIGS[method](*values, 1)
    with pytest.raises(ValueError, match="unknown field"):
        dataclasses.replace(config, nothing=1)
