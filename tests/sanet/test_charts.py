"""Charts: lines, bars and labels can be told apart."""

from itertools import pairwise

import pytest
from matplotlib.axes import Axes

from shuffle_attention.sanet.charts import Circle, Curve, draw_accuracy, draw_bars, draw_steps

NAMES = "none se cbam sge eca gc shuffle".split()


@pytest.fixture
def drawn(monkeypatch) -> list[Axes]:
    """Return the axes that were drawn on, in the order of their first labels."""
    axes = []
    label = Axes.set_title

    def noted(self, *arguments, **options):
        axes.append(self)
        return label(self, *arguments, **options)

    monkeypatch.setattr(Axes, "set_title", noted)
    return axes


def test_curves_differ_in_colour_or_dashes(drawn, tmp_path):
    points = [(0, 50.0), (10, 60.0)]
    curves = [Curve("none", points, "none")]
    for name in NAMES[1:]:
        curves += [Curve(f"{name}-preserved", points, name), Curve(f"{name}-unpreserved", points, name, dashed=True)]
    draw_steps(curves, "title", tmp_path / "curves.png")
    names = [curve.label for curve in curves]
    lines = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in drawn[0].get_lines()}
    assert list(lines) == names
    assert len(set(lines.values())) == len(names)
    assert lines["se-preserved"][0] == lines["se-unpreserved"][0]


def test_each_baseline_is_grey(drawn, tmp_path):
    draw_bars(["a", "b", "c", "d"], ["a", "c"], {"forward": [1.0, 1.2, 1.0, 1.1]}, "title", tmp_path / "bars.png")
    a, b, c, d = (bar.get_facecolor() for bar in drawn[0].patches)
    assert a == c != b == d


def test_the_labels_of_parameters_do_not_touch(drawn, tmp_path):
    millions = [11.174, 11.4, 11.397, 11.175, 11.174, 11.402, 11.1745]
    circles = [Circle(name, m, 0.557, 95, 0.1) for name, m in zip(NAMES, millions, strict=True)]
    draw_accuracy(circles, "title", tmp_path / "accuracy.png")
    axes = drawn[0]
    renderer = axes.figure.canvas.get_renderer()
    low, high = axes.get_xlim()
    labels = [tick for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    extents = [label.label1.get_window_extent(renderer) for label in labels]
    assert len(extents) > 2
    assert all(left.x1 + 3 < right.x0 for left, right in pairwise(extents))


@pytest.mark.parametrize("deviation", [None, 0.1])
def test_models_with_the_same_parameters_are_rows(drawn, tmp_path, deviation):
    circles = [Circle(name, 11.2, 0.557, 95 + n, deviation) for n, name in enumerate(NAMES[:2])]
    draw_accuracy(circles, "title", tmp_path / "accuracy.png", "mAP50-95, %")
    axes = drawn[0]
    assert [label.get_text().split("\n")[0] for label in axes.get_yticklabels()] == NAMES[:2]
    assert [text.get_text() for text in axes.texts] == ["95.00 %", "96.00 %"]
    assert axes.get_xlabel() == "mAP50-95, %"
