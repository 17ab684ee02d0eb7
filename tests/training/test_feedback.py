"""A mark that is asked for while it is taught: when, what follows, and what the owner is told."""

import pytest

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
