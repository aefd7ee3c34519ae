import matplotlib
import pytest
from matplotlib.axes import Axes
from measured_cells import HOW, RECORDS, cell, real

from ersde_lit.sweeps.plot import draw, save
from ersde_lit.sweeps.report import Report


def test_a_line_a_sampler_with_bars_over_the_sets(monkeypatch):
    drawn = []
    errorbar = Axes.errorbar
    monkeypatch.setattr(Axes, "errorbar", lambda axes, *given, **more: (
        drawn.append(given) or errorbar(axes, *given, **more)
    ))  # fmt: skip
    figure = draw(Report(RECORDS, ["fid"], HOW), "fid")
    x, y, (low, high) = drawn[0]
    assert x == [10, 20]
    assert y == pytest.approx([3.1, 1.25])
    assert low == pytest.approx([0.1, 0.25])
    assert high == pytest.approx([0.1, 0.25])
    assert drawn[1][0] == [9]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "heun", "real, held out (one set)"]


def test_the_title_says_of_which_images_it_is():
    (axes,) = draw(Report([cell("a", 5, "0-19", fid=1.0)], ["fid"], HOW), "fid").axes
    assert axes.get_title() == "FID of 20 samples to 9 images of a, Edges (3)"
    (axes,) = draw(Report(RECORDS, ["fid"], HOW), "fid").axes
    assert "mean of 2 sets of seeds, bars from the lowest to the highest" in axes.get_title()
    (axes,) = draw(Report(RECORDS, ["fid"], HOW, best=True), "fid").axes
    assert "best of 2 sets" in axes.get_title()


@pytest.mark.parametrize(
    "scores", [(0.95, 1.05), (1.001, 1.002), (1.1, 1.9), (2.0, 7.0), (0.7, 30.0), (0.2, 150.0), (1e-4, 1e4)]
)
def test_every_axis_has_several_ticks_that_differ(scores):
    records = [cell("a", nfe, "0-19", fid=fid) for nfe, fid in zip((5, 10), scores, strict=True)]
    (axes,) = draw(Report(records, ["fid"], HOW), "fid").axes
    assert axes.get_yscale() == "log"
    low, high = axes.get_ylim()
    shown = [tick for tick in axes.get_yticks() if low <= tick <= high]
    labels = axes.yaxis.get_major_formatter().format_ticks(shown)
    assert 3 <= len({*labels}) == len(labels) <= 10
    assert [float(label) for label in labels] == pytest.approx(shown)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["5", "10"]


def test_a_metric_below_zero_and_one_score_alone_are_drawn(tmp_path):
    (axes,) = draw(Report([real(kid=-0.01), cell("a", 10, "0-19", kid=0.02)], ["kid"], HOW), "kid").axes
    assert axes.get_yscale() == "linear"
    save(Report([cell("a", 5, "0-19", fid=2.0)], ["fid"], HOW), "fid", tmp_path / "fid.png")
    assert [path.name for path in tmp_path.iterdir()] == ["fid.png"]


def test_a_nan_is_drawn_as_a_gap():
    records = [cell("a", 5, "0-19", fid=float("nan")), cell("a", 10, "0-19", fid=2.0)]
    (axes,) = draw(Report(records, ["fid"], HOW), "fid").axes
    assert axes.get_yscale() == "log"


def test_numbers_of_calls_do_not_overlap():
    records = [cell("a", nfe, "0-19", fid=1.0) for nfe in (5, 50, 51, 52, 100)]
    (axes,) = draw(Report(records, ["fid"], HOW), "fid").axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["5", "50", "100"]


def test_any_name_is_drawn_and_the_users_style_is_left_alone(tmp_path):
    style = {**matplotlib.rcParams}
    records = [cell(name, 5, "0-19", fid=float("nan")) for name in ("$\\x$", "_a", "a" * 120)]
    save(Report(records, ["fid"], HOW), "fid", tmp_path / "fid.png")
    assert (tmp_path / "fid.png").exists()
    assert style == {**matplotlib.rcParams}
