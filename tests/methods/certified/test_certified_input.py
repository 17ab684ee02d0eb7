"""Claims and suspects that are refused."""

import copy
import math

import numpy as np
import pytest
import torch
from certified_claims import altered, evidence_of
from scipy.stats import norm

from hf_watermark import (
    CertifiedConfig,
    CertifiedVerifier,
    InvalidInput,
)
from hf_watermark.methods.certified import certify
from hf_watermark.methods.certified.certificate import owner_alpha
from hf_watermark.statistics import (
    draws_to_certify,
)


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"radii": ()}, r"`radii` is \[\]: give different radii between 0 and 10"),
        ({"radii": (0.5, 0.5)}, "give different radii"),
        ({"radii": (0.0,)}, "between 0 and 10"),
        ({"radii": (-1.0,)}, "between 0 and 10"),
        ({"radii": (math.nan,)}, "between 0 and 10"),
        ({"radii": np.array([])}, "`radii` is"),
        ({"confidence": 0.0}, "`confidence` is 0.0: choose a number between 0 and 0.995"),
        ({"confidence": 0.995}, "`confidence` is 0.995"),
        ({"confidence": 1.0}, "`confidence` is 1.0"),
        ({"confidence": math.nan}, "`confidence` is nan"),
        ({"draws": 0}, "draws"),
        ({"draws": -5}, "draws"),
        ({"at_least": 0.0}, r"`at_least` is 0.0: choose an accuracy in \(0, 1\]"),
        ({"at_least": 1.01}, "`at_least` is 1.01"),
    ],
)
def test_questions_that_make_no_sense(marked, claim, changes, message):
    with pytest.raises(ValueError, match=message):
        certify(claim, marked.model, **{"radii": (0.5,)} | changes)


def test_radii_may_be_an_array(marked, claim):
    assert certify(claim, marked.model, np.array([0.5, 1.0]), draws=60) == certify(
        claim, marked.model, (0.5, 1.0), draws=60
    )


def test_too_large_a_radius_says_how_many_draws_it_takes(marked, claim):
    alpha = 0.005 / 2
    needed = draws_to_certify(float(norm.cdf(-2.0)), alpha)
    with pytest.raises(ValueError, match=rf"radius 2.0 is beyond what 200 draws can certify .* use draws={needed}$"):
        certify(claim, marked.model, (1.0, 2.0))
    assert owner_alpha(0.99, (1.0, 2.0), needed) == pytest.approx(alpha)
    with pytest.raises(ValueError, match=f"beyond what {needed - 1} draws"):
        owner_alpha(0.99, (1.0, 2.0), needed - 1)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_not_certified(marked, claim, kind):
    with pytest.raises(InvalidInput, match="parameter noise needs float32 weights"):
        certify(claim, copy.deepcopy(marked.model).to(kind), (0.5,))
    evidence = evidence_of(claim, copy.deepcopy(marked.model).to(kind))
    assert evidence.details["smoothed_matches"] > 70  # a suspect is read all the same


def test_double_precision_weights_are_certified_or_refused(marked, claim):
    double = copy.deepcopy(marked.model).double()
    try:
        assert certify(claim, double, (0.5,), draws=40).certified
    except InvalidInput as error:
        assert "float64" in str(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 0.0}, "`sigma` is 0.0: choose a number"),
        ({"sigma": -0.1}, "`sigma` is -0.1"),
        ({"sigma": math.inf}, "`sigma` is inf"),
        ({"sigma": math.nan}, "`sigma` is nan"),
        ({"family": "text"}, "`family` is 'text': choose one of embedded, noise, unrelated"),
        ({"noise": "loud"}, "`noise` is 'loud'"),
        ({"moves": "nothing"}, "`moves` is 'nothing'"),
        ({"labels": "two"}, "`labels` is 'two'"),
        ({"schedule": "later"}, "`schedule` is 'later'"),
        ({"triggers": 0}, "`triggers` is 0"),
        ({"overshoot": 0.5}, "`overshoot` is 0.5"),
        ({"warmup": 1.5}, "`warmup` is 1.5"),
        ({"strength": 0.0}, "`strength` is 0.0"),
        ({"trigger_ratio": 0.0}, "`trigger_ratio` is 0.0"),
        ({"draws": 9}, "`draws` is 9"),
        ({"suspect_draws": 19}, "`suspect_draws` is 19"),
        ({"preset": "paper"}, "preset 'paper' has one label for all triggers"),
        ({"preset": "mine"}, "`preset` is 'mine'"),
        ({"precision": "float16"}, "`precision` is 'float16': choose one of float32, bfloat16"),
    ],
)
def test_strange_configs_are_refused(change, message):
    with pytest.raises((InvalidInput, ValueError), match=message):
        CertifiedConfig.from_dict(CertifiedConfig().to_dict() | change)


def test_the_paper_s_recipe():
    paper = CertifiedConfig.paper()
    assert (paper.sigma, paper.noise, paper.labels, paper.schedule) == (1.0, "isotropic", "one", "released")
    assert CertifiedConfig.from_dict(paper.to_dict()) == paper


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"scales": {}}, "`scales` must map tensor names to positive numbers"),
        ({"scales": {"a": 0.0}}, "`scales` must map"),
        ({"scales": {"a": math.nan}}, "`scales` must map"),
        ({"scales": [1.0]}, "`scales` must map"),
        ({"classes": 1}, "1 classes, but the owner's model has 10 class names"),
        ({"classes": "ten"}, "ten classes, but the owner's model has 10 class names"),
        ({"classes": 2}, "2 classes, but the owner's model has 10 class names"),
    ],
)
def test_strange_layouts_are_refused(claim, layout, message):
    with pytest.raises(InvalidInput, match=message):
        CertifiedVerifier(altered(claim, layout))
