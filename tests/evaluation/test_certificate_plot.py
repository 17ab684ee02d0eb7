"""The picture of a certificate: what is drawn where, in any shape a certificate can have, and that its words can be read."""

import itertools
import logging
import math

import pytest
from matplotlib.colors import to_hex

from hf_watermark.evaluation.certificate_plot import certificate_plot, write_certificate_plot
from hf_watermark.methods.certified import Certificate, CertifiedRadius


RADII, TRIGGERS, NEEDED = (0.5, 1.0, 1.5, 2.0), 100, 48
ATTACKS = {"int8 weights": 0.9, "prune 50 %": 88.0, "fine-tune, rate 0.001": 280.25}


def certificate(*curves: list[int | None], attacks: dict[str, float] | None = None) -> Certificate:
    """One curve per list of matches at `RADII`."""
    return Certificate(
        sigma=0.3,
        norm="l2 over folded weights, each tensor in units of its scale",
        moves="parameters and BatchNorm statistics",
        triggers=TRIGGERS,
        draws=1000,
        suspect_draws=100,
        confidence=0.99,
        relative_sigma=0.2,
        level_b_matches=NEEDED,
        curves={
            index: [row(*point) for point in zip(RADII, curve, strict=True)] for index, curve in enumerate(curves)
        },
        attack_distances=ATTACKS if attacks is None else attacks,
    )


def row(radius: float, matches: int | None) -> CertifiedRadius:
    share = None if matches is None else matches / TRIGGERS
    certified = matches is not None and matches >= NEEDED
    return CertifiedRadius(radius, 0.3 * radius, matches, share, -100.0 if certified else 0.0, certified, 1000)


def markers(axes, hollow: bool) -> list[tuple[float, float]]:
    lines = [line for line in axes.lines if line.get_marker() not in ("None", "")]
    chosen = [line for line in lines if (to_hex(line.get_markerfacecolor()) == "#ffffff") == hollow]
    return sorted(point for line in chosen for point in zip(*line.get_data(), strict=True))


def words(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_curve_with_certified_and_uncertified_radii():
    curve, attacks = certificate_plot(certificate([100, 80, 20, None])).axes
    assert markers(curve, hollow=False) == [(0.5, 100), (1.0, 80)]
    assert markers(curve, hollow=True) == [(1.5, 20), (2.0, 0)]
    assert words(curve) == ["certified", "not certified", "level B: 48 of 100"]
    dashed = [line for line in curve.lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in dashed] == [48]


def test_a_step_reaches_back_to_the_radius_before():
    """What is certified at 1.0 holds at 0.7 too, and what is certified at 0.5 does not."""
    curve = certificate_plot(certificate([100, 80, 20, None])).axes[0]
    steps = next(line for line in curve.lines if line.get_drawstyle() == "steps-pre" and len(line.get_xdata()) == 3)
    assert list(steps.get_xdata()) == [0, 0.5, 1.0] and list(steps.get_ydata()) == [100, 100, 80]


def test_attacks_and_the_band_that_the_certificate_covers():
    axes = certificate_plot(certificate([100, 80, 20, None])).axes[1]
    assert axes.get_xscale() == "log"
    assert axes.patches[0].get_extents().x1 == pytest.approx(axes.transData.transform((1.0, 0))[0])
    assert axes.get_title(loc="left") == "shaded: certified, up to 1 σ"
    assert [label.get_text() for label in axes.get_yticklabels()] == list(ATTACKS)
    dots = [line for line in axes.lines if line.get_marker() in ("o", "D")]
    assert [line.get_xdata()[0] for line in dots] == list(ATTACKS.values())
    assert [line.get_marker() for line in dots] == ["o", "D", "D"], "only the first lies inside the radius"
    numbers = axes.child_axes[0]
    assert [label.get_text() for label in numbers.get_yticklabels()] == ["0.9", "88", "280"]


def test_the_radius_is_that_of_the_weakest_subkey():
    curve, attacks = certificate_plot(certificate([100, 90, 60, 50], [100, 90, 20, 10])).axes
    assert words(curve)[:3] == ["sub-key 0", "sub-key 1", "not certified"]
    assert attacks.get_title(loc="left") == "shaded: certified, up to 1 σ"


def test_nothing_certified():
    curve, attacks = certificate_plot(certificate([40, 20, None, None])).axes
    assert markers(curve, hollow=False) == []
    assert len(markers(curve, hollow=True)) == 4
    assert attacks.patches[:] == [] and attacks.get_title(loc="left") == "no radius is certified"


def test_distances_that_have_no_place_on_a_logarithmic_axis():
    axes = certificate_plot(certificate([100] * 4, attacks={"none": 0.0, "far": math.inf})).axes[1]
    low, high = axes.get_xlim()
    dots = [line for line in axes.lines if line.get_marker() in ("<", ">")]
    assert [line.get_xdata()[0] for line in dots] == [low, high]
    assert [label.get_text() for label in axes.child_axes[0].get_yticklabels()] == ["0", "∞"]


def test_without_attacks_there_is_one_panel():
    assert len(certificate_plot(certificate([100] * 4, attacks={})).axes) == 1


@pytest.mark.parametrize("distance", [0.0004, 0.2, 0.61, 3.1, 12345.0])
def test_the_logarithmic_axis_always_shows_a_number(distance):
    axes = certificate_plot(certificate([None] * 4, attacks={"one": distance})).axes[1]
    axes.figure.draw_without_rendering()
    low, high = axes.get_xlim()
    shown = [tick for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    assert any(tick.label1.get_text() == f"{tick.get_loc():g}" for tick in shown)


@pytest.mark.parametrize("curves", [([100, 80, 20, None],), ([None] * 4,), ([100] * 4, [90] * 4, [60] * 4)])
def test_no_two_words_overlap_and_none_leaves_the_picture(curves):
    figure = certificate_plot(certificate(*curves))
    figure.draw_without_rendering()
    curve, attacks = figure.axes
    texts = [figure._supxlabel, curve.xaxis.label, curve.yaxis.label, attacks.xaxis.label, *attacks.get_yticklabels()]
    texts += [*attacks.child_axes[0].get_yticklabels(), *curve.get_legend().get_texts(), attacks._left_title]
    texts += [label for axes in figure.axes for label in axes.get_xticklabels() if label.get_text()]
    low, high = attacks.get_xlim()
    boxes = {
        text.get_text(): text.get_window_extent()
        for text in texts
        if text.axes is not attacks or text not in attacks.get_xticklabels() or low <= text.get_position()[0] <= high
    }
    assert len(boxes) > 12
    for first, second in itertools.combinations(boxes, 2):
        assert not boxes[first].overlaps(boxes[second]), (first, second)
    for word, box in boxes.items():
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, word
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, word


def test_written_as_a_png_and_never_overwritten(tmp_path, caplog):
    path = tmp_path / "certificate.png"
    with caplog.at_level(logging.WARNING):
        assert write_certificate_plot(certificate([100, 80, 20, None]), path) == path
    assert caplog.records == [], "every font that is asked for is there"
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    with pytest.raises(FileExistsError, match="left as it is"):
        write_certificate_plot(certificate([None] * 4), path)
    assert path.read_bytes() == content
    write_certificate_plot(certificate([None] * 4), path, overwrite=True)
    assert path.read_bytes() != content
