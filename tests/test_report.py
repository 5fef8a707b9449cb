"""Claims about a run's page: it stands alone, says what metrics.json says, and trusts no name in it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest

import tlkeras as tl
from tlkeras.history import History
from tlkeras.plots import plot_history
from tlkeras.predictions import Predictions
from tlkeras.recipes import Result
from tlkeras.report import draw_figures, write_report

matplotlib.use("Agg")

HOSTILE = "<script>alert(1)</script>"
AUDIT = {"planned": 2, "moved": 2, "frozen": 9, "frozen_moved": [], "statistics_moved": [], "holds": True}


class Page(HTMLParser):
    """The words of a page, and what it would fetch."""

    def __init__(self, source: str):
        super().__init__()
        self.words, self.sources, self.tags = [], [], set()
        self.feed(source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def run(tmp_path, tiny_backbone, colour_pictures):
    """A run folder as `tlkeras fit` leaves it, of a classifier that has learnt nothing; its predictions; its data."""
    images, labels = colour_pictures
    data = tl.load_arrays(images, labels, class_names=["ant", HOSTILE, "wasp"])
    model = tl.build_classifier(tiny_backbone, 3)
    held_out = tl.predict(model, data)
    rows = [
        {"phase": "head", "epoch": k, "loss": 1.0, "accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5}
        for k in (1, 2)
    ]
    metrics = {
        "validation": tl.evaluate(held_out).to_dict(), "test": None, "seconds": {"head": 1.5, "total": 2.0},
        "counts": data.counts, "audit": {"head": AUDIT}, "kept_epoch": {"head": 2},
        "kept_share": {"head": 1.0},
        "set_aside": [{"path": f"{HOSTILE}.jpg", "reason": "not a picture"}], "duplicates": [["a.jpg", "b.jpg"]],
        "leaks": [], "notes": ["class folder 'moth' holds no usable picture"],
        "backbone": {"name": "Tiny", "alpha": None, "weights": "random"}, "strategy": "head", "advice": None,
        "arguments": {"folder": "/photos/insects", "weights": "/photos/my.npz", "seed": 0, "groups": None},
    }  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    draw_figures(tmp_path, data, Result(model, History(rows), "head"), held_out, tl.evaluate(held_out))
    return tmp_path, held_out, data


def test_the_page_says_what_the_metrics_say(run):
    folder, held_out, data = run
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    value, known = tl.evaluate(held_out).accuracy, len(data.labels["train"])
    assert f"accuracy {100 * value.value:.1f} % ({100 * value.low:.1f} to {100 * value.high:.1f})" in page.text
    assert f"pictures {len(held_out)}" in page.text and f"{known} pictures to learn from" in page.text
    assert "2 of 2" in page.text and "0 of 9" in page.text and "There was no test split" in page.text
    assert (
        "not a picture" in page.text and "a.jpg; b.jpg" in page.text and "moth" in page.text and "insects" in page.text
    )
    assert "/photos" not in page.text, "the page tells strangers how this machine's folders are named"


def test_the_page_needs_no_other_file_and_runs_nothing(run):
    folder, *_ = run
    source = write_report(folder).read_text(encoding="utf-8")
    page = Page(source)
    assert len(page.sources) == 4 and all(text.startswith("data:image/png;base64,") for text in page.sources)
    assert not page.tags & {"script", "link", "iframe"} and not re.search(r"https?://|url\(|@import", source)


def test_names_of_classes_and_files_are_shown_and_never_obeyed(run):
    folder, *_ = run
    source = write_report(folder).read_text(encoding="utf-8")
    assert HOSTILE not in source
    assert Page(source).text.count(HOSTILE) >= 3  # two tables of classes, and a file


def test_a_run_without_a_mistake_has_no_figure_of_mistakes(run):
    folder, held_out, data = run
    assert (folder / "mistakes.png").exists()
    (folder / "mistakes.png").unlink()
    right = Predictions(held_out.truth, np.eye(3)[held_out.truth], held_out.paths, held_out.class_names, held_out.task)
    model = tl.build_classifier(tl.small_backbone(32), 3)
    rows = [{"phase": "head", "epoch": 1, "loss": 1.0, "accuracy": 1.0}]
    draw_figures(folder, data, Result(model, History(rows), "head"), right, tl.evaluate(right))
    assert not (folder / "mistakes.png").exists()
    assert "Grad-CAM" not in Page(write_report(folder).read_text(encoding="utf-8")).text


@pytest.mark.parametrize(("share", "said"), [(0.0, ""), (0.75, ", 75 % of the way"), (1.0, "")])
def test_the_curves_say_where_what_was_kept_is_no_point_of_them(run, monkeypatch, share, said):
    folder, held_out, data = run
    titles = []
    monkeypatch.setattr("tlkeras.report.plot_history", lambda rows, title: titles.append(title) or plot_history(rows))
    rows = [{"phase": "fine-tune", "epoch": 1, "loss": 1.0, "accuracy": 1.0}]
    history, found = History(rows, shares={"head": 1.0, "fine-tune": share}), tl.evaluate(held_out)
    model = tl.build_classifier(tl.small_backbone(32), 3)
    draw_figures(folder, data, Result(model, history, "fine-tune"), held_out, found)
    assert titles == [f"Validation accuracy {found.accuracy.in_percent()}{said}"]


def test_a_test_split_and_advice_are_told(run):
    folder, *_ = run
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["test"] = metrics["validation"]
    metrics["advice"] = {
        "cell": "little data, similar",
        "reasons": [["pictures a class", "20", "few"]],
        "more_data": True,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert "The test pictures were looked at once" in page.text
    assert "little data, similar; more pictures promise more" in page.text and "pictures a class 20 few" in page.text


def told(folder, **changed):
    """What the page says if the metrics are other ones."""
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**metrics, **changed}))
    return Page(write_report(folder).read_text(encoding="utf-8")).text


def test_a_leak_in_the_given_split_stands_beside_the_figures(run):
    folder, *_ = run
    assert "on both sides" not in told(folder)
    assert "1 groups of pictures that look the same or belong together lie on both sides" in told(
        folder, leaks=[["a.jpg", "b.jpg"]]
    )


def test_a_probe_has_no_epochs_and_a_phase_that_only_hurt_is_put_back(run):
    folder, *_ = run
    assert "chose the epoch" in told(folder)
    probe = told(folder, kept_epoch={"probe": 1}, audit={})
    assert "chose the epoch" not in probe and "a fit of the head on stored features" in probe
    assert "0: put back" in told(folder, kept_epoch={"head": 0}, audit={"head": AUDIT})
    assert "of the way" not in told(folder)
    assert " 2, 25.0 % of the way there " in told(folder, kept_epoch={"head": 2}, kept_share={"head": 0.25})


def test_a_class_without_validation_pictures_is_no_failure_of_0_percent(run):
    folder, held_out, _ = run
    per_class = tl.evaluate(held_out).to_dict()
    per_class["per_class"]["wasp"] |= {"recall": 0.0, "precision": 0.0, "f1": 0.0, "num_pictures": 0}
    assert "wasp – – – 0" in told(folder, validation=per_class)


def test_a_name_that_is_no_text_does_not_lose_the_run(run):
    folder, *_ = run
    assert "caf?.txt" in told(folder, set_aside=[{"path": "caf\udce9.txt", "reason": "not a picture"}])
