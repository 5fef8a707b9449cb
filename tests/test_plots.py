from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from tlkeras.history import History
from tlkeras.intervals import Interval, wilson_interval
from tlkeras.plots import plot_confusion, plot_history, plot_intervals, plot_pictures, plot_reliability
from tlkeras.style import GREY


@pytest.fixture(autouse=True)
def close_figures():
    """Close what a test drew: pyplot warns from the twentieth on."""
    yield
    pyplot.close("all")


def history(num_head=3, num_fine_tune=2, *, validation=True, shift=0.0):
    """Get rows as `History.rows` has them."""
    rows = []
    for epoch in range(1, num_head + num_fine_tune + 1):
        row = {"phase": "head" if epoch <= num_head else "fine-tune", "epoch": epoch}
        row |= {"loss": 1 / epoch, "accuracy": 1 - 0.5 / epoch + shift, "learning_rate": 1e-3, "seconds": 1.0}
        rows.append(row | ({"val_loss": 1.2 / epoch, "val_accuracy": 1 - 0.6 / epoch + shift} if validation else {}))
    return rows


def lines(ax):
    """Get the named lines of an Axes."""
    return {line.get_label(): line for line in ax.lines}


def fits(ax):
    """Get whether all that is drawn, titles and names included, lies within the figure."""
    figure = ax.get_figure()
    figure.canvas.draw()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return min(drawn.x0, drawn.y0) > -0.02 and drawn.x1 < width + 0.02 and drawn.y1 < height + 0.02


def test_train_is_dashed_and_validation_solid():
    ax = plot_history(history(), title="It learns")
    assert lines(ax)["train"].get_linestyle() == "--" and lines(ax)["validation"].get_linestyle() == "-"
    np.testing.assert_allclose(lines(ax)["validation"].get_ydata(), [1 - 0.6 / e for e in range(1, 6)])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title("left")) == ("epoch", "accuracy (%)", "It learns")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["train", "validation"]


def test_the_boundary_lies_between_the_last_epoch_of_the_head_and_the_first_after():
    ax = plot_history(history(3, 2))
    assert lines(ax)["_boundary"].get_xdata() == [3.5, 3.5]
    assert [(text.get_text(), text.xy[0]) for text in ax.texts] == [("head", 0.5), ("fine-tune", 3.5)]


def test_without_validation_or_a_second_phase_nothing_is_made_up():
    ax = plot_history(history(3, 0, validation=False), metric="loss")
    assert set(lines(ax)) == {"train"} and ax.get_ylabel() == "loss (nats)"


def test_one_epoch_alone_can_be_seen():
    ax = plot_history(history(1, 0))
    assert lines(ax)["train"].get_marker() == "o"
    assert ax.get_xlim() == (0.5, 1.5)
    assert [tick for tick in ax.get_xticks() if 0.5 < tick < 1.5] == [1]


def test_several_seeds_become_a_mean_and_a_band():
    ax = plot_history([history(), history(shift=-0.1), history(num_fine_tune=3, shift=0.1)])
    np.testing.assert_allclose(lines(ax)["train"].get_ydata(), [1 - 0.5 / e for e in range(1, 6)])
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.4) and band[:, 1].max() == pytest.approx(1.0)
    whole = plot_history([History(history()), History(history(shift=-0.1)), History(history(shift=0.1))])
    np.testing.assert_array_equal(lines(whole)["train"].get_ydata(), lines(ax)["train"].get_ydata())
    assert len(lines(plot_history(History(history())))["train"].get_ydata()) == 5
    with pytest.raises(ValueError, match="changed phase at different epochs"):
        plot_history([history(3, 2), history(2, 3)])


def test_a_history_that_cannot_be_drawn_says_why():
    with pytest.raises(ValueError, match="no epoch"):
        plot_history([])
    with pytest.raises(ValueError, match="no 'recall'; they hold accuracy, epoch"):
        plot_history(history(), metric="recall")


@pytest.mark.parametrize("num_classes", [2, 5, 10, 12, 20])
def test_confusion_shows_counts_and_names_within_the_figure(num_classes):
    matrix = np.eye(num_classes, dtype=int) * 1234
    matrix[0, 1] = 7
    names = [f"a rather long name of class {k}, with a note" for k in range(num_classes)]
    ax = plot_confusion(matrix, names, title="A title that is so long that it cannot stand in a single line " * 2)
    written = [text.get_text().split("\n")[0] for text in ax.texts]
    assert written.count("1,234") == num_classes and written.count("7") == 1
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "true class")
    assert len(ax.get_xticklabels()) == num_classes and len({t.get_text() for t in ax.get_yticklabels()}) == num_classes
    assert fits(ax)


def test_confusion_shades_by_the_share_of_the_true_class():
    ax = plot_confusion(np.array([[3, 1], [0, 0]]), ["a", "b"])
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.75, 0.25], [0, 0]])
    assert ax.texts[0].get_text() == "3\n75%"
    with pytest.raises(ValueError, match=r"\(3, 3\), got \(2, 2\)"):
        plot_confusion(np.eye(2), ["a", "b", "c"])


def test_short_names_leave_room_for_the_labels():
    assert fits(plot_confusion(np.eye(10, dtype=int), [str(k) for k in range(10)]))


def test_a_hundred_classes_leave_out_counts_and_thin_out_names():
    ax = plot_confusion(np.eye(100, dtype=int), [str(k) for k in range(100)])
    assert not ax.texts and len(ax.get_xticklabels()) <= 40


def test_a_wrong_picture_is_marked_with_more_than_colour():
    images = np.zeros((3, 4, 4, 3))
    axes = plot_pictures(images, [0, 1, 0], [0, 0, 0], ["ants", "bees"], probabilities=np.tile([0.9, 0.1], (3, 1)))
    assert [ax.get_title("left") for ax in axes] == ["✓ ants 90%", "✗ ants 90%\nis bees", "✓ ants 90%"]
    assert axes[1].spines["top"].get_linewidth() > axes[0].spines["top"].get_linewidth()
    assert axes[1].images[0].get_array().dtype == np.uint8


def test_pictures_without_predictions_carry_their_class():
    axes = plot_pictures(np.full((7, 4, 4, 3), 300.0), [0] * 7, title="Seven")
    assert len(axes) == 7 and axes[6].get_title("left") == "0"
    assert axes[0].images[0].get_array().max() == 255
    with pytest.raises(ValueError, match="7 pictures, but 6 in truth"):
        plot_pictures(np.zeros((7, 4, 4, 3)), [0] * 6)
    with pytest.raises(ValueError, match="one picture at least"):
        plot_pictures(np.zeros((0, 4, 4, 3)), [])


def test_grey_pictures_are_grey_and_all_on_one_scale():
    images = np.stack([np.full((4, 4, 1), 100.0), np.arange(40, 56).reshape(4, 4, 1)])
    for ax, image in zip(plot_pictures(images, [0, 1]), images, strict=True):
        shown = ax.images[0].get_array()
        assert shown.dtype == np.uint8
        np.testing.assert_array_equal(shown, np.repeat(image, 3, axis=-1))


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_channels_that_are_no_colours_are_refused(channels):
    with pytest.raises(ValueError, match=rf"height, width, 3 or 1\) .* got \(2, 4, 4, {channels}\)"):
        plot_pictures(np.zeros((2, 4, 4, channels)), [0, 1])


def test_intervals_stand_in_order_against_a_thin_grey_baseline():
    some = {"from scratch": Interval(0.6, 0.5, 0.7), "probe": (0.9, 0.85, 0.92)}
    ax = plot_intervals(some, baseline=0.5, baseline_name="chance", title="A finding that takes two lines to say " * 3)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["from scratch", "probe"]
    assert ax.yaxis_inverted()
    segments = [path.vertices[:, 0].tolist() for path in ax.collections[0].get_paths()]
    np.testing.assert_allclose(segments, [[0.5, 0.7], [0.85, 0.92]])
    baseline = next(line for line in ax.lines if list(line.get_xdata()) == [0.5, 0.5])
    assert baseline.get_color() == GREY and baseline.get_linewidth() < 1
    assert {"60.0", "90.0", "chance"} <= {text.get_text() for text in ax.texts}
    assert fits(ax)


def test_an_interval_without_its_value_is_refused():
    with pytest.raises(ValueError, match="'a': expected low <= value <= high"):
        plot_intervals({"a": (0.5, 0.6, 0.7)})
    with pytest.raises(ValueError, match="no interval"):
        plot_intervals({})


def test_reliability_by_hand():
    # Ten pictures at 0.95, eight of them right.
    ax = plot_reliability(np.tile([0.95, 0.05], (10, 1)), np.array([0] * 8 + [1] * 2))
    np.testing.assert_allclose(lines(ax)["model"].get_xydata(), [[0.95, 0.8]])
    wanted = wilson_interval(8, 10)
    np.testing.assert_allclose(ax.collections[0].get_segments()[0][:, 1], [wanted.low, wanted.high])
    assert lines(ax)["calibrated"].get_linewidth() < 1
    assert "15.0 points, 10 pictures" in ax.get_legend().get_title().get_text()
    with pytest.raises(ValueError, match="no picture"):
        plot_reliability(np.zeros((0, 2)), np.zeros(0))


def test_axes_of_the_caller_are_used_and_no_figure_is_opened():
    axes = Figure(figsize=(12, 8), layout="constrained").subplots(2, 2).ravel()
    assert plot_history(history(), ax=axes[0], title="One") is axes[0]
    assert plot_confusion(np.eye(3), ["a", "b", "c"], ax=axes[1], title="Two") is axes[1]
    assert plot_intervals({"a": (1, 0, 2)}, label="time (s)", ax=axes[2]) is axes[2]
    assert plot_reliability(np.array([[0.9, 0.1]]), np.array([0]), ax=axes[3]) is axes[3]
    assert not pyplot.get_fignums()
    assert not axes[0].spines["top"].get_visible()


def test_the_style_of_the_caller_is_left_alone():
    before = dict(matplotlib.rcParams)
    plot_history(history())
    assert dict(matplotlib.rcParams) == before


def test_dollars_in_names_are_no_formula():
    ax = plot_confusion(np.eye(2, dtype=int), ["items $x_{$ b", "cost $"])
    ax.get_figure().canvas.draw()  # would raise
    assert ax.get_yticklabels()[0].get_text() == r"items \$x_{\$ b"


def test_a_probe_has_no_loss_and_those_after_it_have():
    probe = {"phase": "probe", "epoch": 1, "accuracy": 0.9, "val_accuracy": 0.8, "val_loss": 0.7, "penalty": 1.0}
    ax = plot_history([probe, *history(0, 3)], metric="loss")
    np.testing.assert_allclose(lines(ax)["train"].get_ydata(), [np.nan, 1, 1 / 2, 1 / 3])
    np.testing.assert_allclose(lines(ax)["validation"].get_ydata(), [0.7, 1.2, 0.6, 0.4])
    np.testing.assert_allclose(
        lines(plot_history([probe, *history(0, 3)], metric="penalty"))["train"].get_ydata()[0], 1
    )
