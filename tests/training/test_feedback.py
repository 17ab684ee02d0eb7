"""A mark that is asked for while it is taught: when, what follows, and what the owner is told."""

import json
import logging

import pytest
from tiny import patterned_images, tiny_resnet
from transformers import default_data_collator

from hf_watermark import Owner, plan_key
from hf_watermark.mapping import AutoEmbedding, method_entry
from hf_watermark.training.embedding import TrainingData
from hf_watermark.training.feedback import LOOKS, Feedback
from hf_watermark.training.moment import Moment


STEPS = 400


def run(curve, steps=STEPS, **fields):
    """A training whose readings are `curve(share, feedback)`; returns the feedback and what was said at which step."""
    feedback = Feedback(lambda: (0.0, 0.0, None), -96.0, 0.5, **fields)
    said = {}
    for step in range(steps):
        feedback.ask = lambda step=step: curve(step / steps, feedback)
        for micro_step in range(2):
            sentence = feedback.look(Moment(step, steps, micro_step))
            if sentence:
                said[step] = sentence
    return feedback, said


def test_it_looks_at_tenths_of_a_run_and_once_each():
    feedback, _ = run(lambda share, _: (-300 * share, share, None))
    assert [reading.step for reading in feedback.readings] == [STEPS * number // LOOKS for number in range(1, LOOKS)]


def test_a_short_run_is_not_slowed_down():
    feedback, _ = run(lambda share, _: (-300 * share, share, None), steps=20)
    assert not feedback.readings and feedback.logs() == {}


def test_without_a_target_nothing_is_asked():
    feedback = Feedback(lambda: pytest.fail("asked"), 0.0, 0.5)
    assert all(feedback.look(Moment(step, STEPS)) is None for step in range(STEPS))


def test_a_mark_that_is_in_is_only_held():
    feedback, said = run(lambda share, _: (-140.0, 0.9, None), least=0.1)
    assert feedback.strength == pytest.approx(0.1) and not said
    assert feedback.logs() == {"watermark_log2_p": -140.0, "watermark_strength": 0.1}


def test_a_mark_that_lags_is_taught_more_and_the_owner_is_told_twice_in_the_first_half():
    feedback, said = run(lambda share, _: (-20 * share, 0.3, None), most=8.0)
    assert feedback.strength == 8.0
    assert list(said) == [STEPS // 5, STEPS // 2]
    assert "after 80 of 400 steps log2 p is -4; it will hardly reach the target of -96" in said[80]
    assert "more steps" in said[200] and "greedy_residuals" in said[200]


def test_a_mark_that_was_held_too_loosely_is_taught_again():
    strengths = []

    def curve(share, feedback):
        strengths.append(feedback.strength)
        return (-140.0 if share < 0.5 else -90.0), 0.8, None

    run(curve, least=0.1)
    assert min(strengths) == strengths[4] < 0.3 and strengths[-1] > strengths[4]


def test_the_price_is_watched_beyond_what_the_images_can_tell():
    def falling(share, _):
        return -20 * share, 0.3, 0.9 if share < 0.35 else 0.6

    def shaking(share, _):
        return -20 * share, 0.3, 0.9 if round(share * 10) % 2 else 0.86

    assert run(falling, most=8.0, least=0.1, images=120)[0].strength < 1
    assert run(shaking, most=8.0, least=0.1, images=120)[0].strength == 8.0


def test_a_training_begins_with_nothing_and_goes_on_with_what_it_had():
    feedback, _ = run(lambda share, _: (-20 * share, 0.3, None), most=8.0)
    state = json.loads(json.dumps(feedback.state()))
    feedback.begin({})
    assert feedback.strength == 1.0 and not feedback.readings
    feedback.begin(state)
    assert feedback.strength == 8.0 and [reading.step for reading in feedback.readings][-1] == 360


def test_a_target_out_of_reach_is_told_at_the_beginning_and_is_not_taught_for():
    feedback = Feedback(lambda: None, -96.0, 0.5, most=8.0, reachable=-72.0, advice="raise `rules`")
    said = feedback.begin({})
    assert "its target of -96 is out of reach, all right it has log2 p = -72: raise `rules`" in said
    feedback, said = run(lambda share, _: (-72.0, 1.0, None), most=8.0, reachable=-72.0)
    assert feedback.strength <= 1.0 and not said
    _, said = run(lambda share, _: (-20 * share, 0.3, None), most=8.0, reachable=-72.0)
    assert "it will hardly reach -72, the best that there is under this key" in said[80]


@pytest.mark.parametrize(
    ("method", "best"), [("function_coupled", -72), ("certified", -69), ("usp", -72), ("csp", -72)]
)
def test_methods_know_what_is_out_of_reach(method: str, best: int, caplog):
    """24 rules over 10 classes, 22 triggers less a bit, and 8 features of 9 signs."""
    fields = {
        "function_coupled": {"rules": 24, "pool_per_class": 4, "images_per_rule": 4},
        "certified": {"triggers": 22},
        "usp": {"features": 8, "pool_per_class": 4},
        "csp": {"features": 8, "pool_per_class": 4},
    }[method]
    config = method_entry(method).load("Config")(**fields)
    data = patterned_images()
    model = tiny_resnet()
    key = plan_key(model, data, config, Owner.create())
    embedding = AutoEmbedding.for_method(method)(model, key.claims()[0], TrainingData(data, default_data_collator))
    assert embedding.feedback.reachable == pytest.approx(best, abs=1)
    with caplog.at_level(logging.WARNING, logger="hf_watermark"):
        embedding.begin(Moment(), {})
    assert f"`{method}`: its target of -96 is out of reach" in caplog.text
