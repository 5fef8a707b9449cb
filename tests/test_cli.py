"""Claims about the command line: what it leaves behind, what it says, and with which exit status."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tlkeras.cli import main
from tlkeras.pictures import decode_picture

COMMAND = [sys.executable, "-m", "tlkeras"]


def run(*arguments, **environment) -> subprocess.CompletedProcess:
    """The command line as a user starts it."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "", **environment}
    environment.pop("TF_CPP_MIN_LOG_LEVEL") if not environment["TF_CPP_MIN_LOG_LEVEL"] else None
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, env=environment, check=False
    )


@pytest.fixture
def run_here(monkeypatch, capsys):
    """The command line in this process, for what no new process is needed: a start takes seconds."""
    loggers = [logging.getLogger(name) for name in ("tlkeras", "tensorflow")]
    before = [(logger.level, logger.propagate, logger.handlers) for logger in loggers]

    def run_main(*arguments, **environment) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["tlkeras", *map(str, arguments)])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return subprocess.CompletedProcess(arguments, ended.value.code, *capsys.readouterr())

    yield run_main
    for logger, (level, logger.propagate, logger.handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of 24 pictures that differ in shape, and nothing else in the folder."""
    from tlkeras import make_fractals

    root = tmp_path_factory.mktemp("photos")
    images, labels = make_fractals(2, 24, image_size=64, family=1)
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / ("bee", "ant")[label]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{k}.png")
    return root


@pytest.fixture(scope="module")
def finished(photos, odd_files, tmp_path_factory):
    """A finished fine-tuning on those pictures with forty odd files thrown in."""
    root = shutil.copytree(photos, tmp_path_factory.mktemp("odd") / "photos")
    for name, content in odd_files["bad"].items():
        (root / "bee" / name).write_bytes(content)
    out = tmp_path_factory.mktemp("runs") / "run"
    done = run("fit", root, "--weights", "embedded", "--image-size", 64, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done


def test_fit_leaves_everything_a_reader_needs(finished, photos):
    out, done = finished
    metrics = json.loads((out / "metrics.json").read_text())
    mistakes = {"mistakes.png"} if metrics["validation"]["accuracy"]["value"] < 1 else set()
    assert {path.name for path in out.iterdir()} == mistakes | {
        "report.html", "metrics.json", "history.csv", "split.csv", "model",
        "history.png", "confusion.png", "pictures.png",
    }  # fmt: skip
    assert {"value", "low", "high"} <= metrics["validation"]["accuracy"].keys()
    assert metrics["test"] is None and metrics["notes"] == []
    with np.load(out / "model" / "golden.npz") as golden:
        kept = {picture.tobytes() for picture in golden["pictures"]}
    shown = [file.parent.name for file in photos.rglob("*.png") if decode_picture(file, 64).tobytes() in kept]
    assert len(kept) == len(shown) == 8 and set(shown) == {"ant", "bee"}
    assert {"probe", "fine-tune", "total"} <= metrics["seconds"].keys()
    assert sum(metrics["counts"]["train"].values()) + sum(metrics["counts"]["validation"].values()) == 48
    assert all(audit["holds"] and not audit["statistics_moved"] for audit in metrics["audit"].values())
    assert "validation: accuracy" in done.stdout


def test_fit_finishes_on_odd_files_and_names_each(finished, odd_files):
    out, _ = finished
    named = {os.path.basename(item["path"]) for item in json.loads((out / "metrics.json").read_text())["set_aside"]}
    assert set(odd_files["bad"]) <= named


def test_the_command_line_is_silent_about_tensorflow(finished):
    _, done = finished
    for noise in ("oneDNN", "cuda", "WARNING", "UserWarning", "retracing"):
        assert noise not in done.stderr + done.stdout


def test_predict_prints_probabilities_that_sum_to_one(finished, photos, run_here):
    out, _ = finished
    picture = next((photos / "ant").glob("*.png"))
    done = run_here("predict", out, picture, "--json")
    (row,) = json.loads(done.stdout)
    assert row["path"] == str(picture) and "heat" not in row
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)


def test_predict_names_the_broken_picture_and_still_answers_for_the_others(finished, photos, tmp_path):
    out, _ = finished
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"<html>")
    picture = next((photos / "ant").glob("*.png"))
    done = run("predict", out, broken, picture, "--json", "--heat", tmp_path / "heat")
    assert done.returncode == 1
    assert "broken.jpg" in done.stderr and "Traceback" not in done.stderr
    (row,) = json.loads(done.stdout)
    with Image.open(row["heat"]) as heat, Image.open(picture) as seen:
        assert heat.size == seen.size == (64, 64), "the run takes 64 pixels"
        assert np.any(np.asarray(heat) != np.asarray(seen.convert("RGB")))


def test_predict_takes_a_folder_at_any_depth_and_names_what_is_no_picture(finished, photos, tmp_path, run_here):
    out, _ = finished
    (tmp_path / "new" / "later").mkdir(parents=True)
    names = ["a.png", "later/b.png"]
    for name, picture in zip(names, sorted((photos / "ant").glob("*.png")), strict=False):
        shutil.copy(picture, tmp_path / "new" / name)
    (tmp_path / "new" / ".hidden").write_text("not looked at")
    whole = run_here("predict", out, tmp_path / "new", "--json")
    assert whole.returncode == 0, whole.stderr
    assert [row["path"] for row in json.loads(whole.stdout)] == [str(tmp_path / "new" / name) for name in names]
    (tmp_path / "new" / "notes.txt").write_text("text")
    heat = run_here("predict", out, tmp_path / "new", "--json", "--heat", tmp_path / "heat")
    assert heat.returncode == 1 and "1 of 3 pictures cannot be used" in heat.stderr and "notes.txt" in heat.stderr
    assert [row["path"] for row in json.loads(heat.stdout)] == [row["path"] for row in json.loads(whole.stdout)]
    assert [Path(row["heat"]).name for row in json.loads(heat.stdout)] == ["001_a.png", "002_b.png"]
    (tmp_path / "empty").mkdir()
    assert "is a folder without a file" in run_here("predict", out, tmp_path / "empty").stderr


def test_export_writes_a_classifier_for_a_phone_and_says_how_to_feed_it(finished, tmp_path):
    out, _ = finished
    done = run("export", out, tmp_path / "insects.tflite")
    assert done.returncode == 0 and done.stderr == ""
    assert {path.name for path in tmp_path.iterdir()} == {"insects.tflite", "insects.tflite.json"}
    assert json.loads((tmp_path / "insects.tflite.json").read_text())["class_names"] == ["ant", "bee"]


def test_a_finished_run_is_not_overwritten_unless_asked(finished, photos, run_here):
    out, _ = finished
    done = run_here("fit", photos, "--out", out)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "--overwrite" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["fit", "nowhere", "--out", "x"], 1, "nowhere"),
        (["fit"], 2, "Missing argument"),
        (["fit", ".", "--out", "x", "--strategy", "magic"], 2, "magic"),
        (["predict", "nowhere", "x.jpg"], 1, "nowhere"),
    ],
)
def test_the_users_errors_end_in_one_line_and_usage_in_status_2(
    arguments, status, said, tmp_path, monkeypatch, run_here
):
    monkeypatch.chdir(tmp_path)
    done = run_here(*arguments)
    assert done.returncode == status
    assert said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("error", [MemoryError("9 TiB"), tf.errors.ResourceExhaustedError(None, None, "OOM")])
def test_what_does_not_fit_into_memory_ends_in_one_line_that_says_what_would(error, run_here, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("tlkeras.runs.fit_folder", fail)
    done = run_here("fit", "photos", "--out", "run")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "a smaller --image-size" in done.stderr


def test_a_users_error_is_all_that_is_printed(tmp_path):
    done = run("fit", tmp_path / "nowhere", "--out", tmp_path / "x")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "nowhere" in done.stderr


def test_weights_out_of_reach_end_in_a_line_that_tells_the_next_step(photos, tmp_path):
    broken_proxy = {"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    done = run(
        "fit",
        photos,
        "--weights",
        "imagenet",
        "--out",
        tmp_path / "x",
        KERAS_HOME=str(tmp_path / "home"),
        **broken_proxy,
    )
    assert done.returncode == 1
    assert "embedded" in done.stderr and str(tmp_path / "home") in done.stderr and "Traceback" not in done.stderr


def test_a_killed_fit_goes_on_with_the_same_command_and_leaves_no_half_run(photos, tmp_path, run_here):
    out = tmp_path / "run"
    arguments = ["fit", photos, "--weights", "embedded", "--image-size", 64, "--strategy", "head", "--out", out]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=said, stderr=said)
    state = tmp_path / "run.partial" / "checkpoints" / "head 0" / "head.npz"
    deadline = time.monotonic() + 600
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert state.exists() and not out.exists(), (tmp_path / "said").read_text()
    refused = run_here(*arguments, "--seed", 7)
    assert refused.returncode == 1 and "seed" in refused.stderr
    done = run_here(*arguments)
    assert done.returncode == 0, done.stderr
    assert (out / "metrics.json").exists() and not state.parent.parent.exists()


@pytest.mark.parametrize(
    ("arguments", "goes_on"),
    [
        (("fit", "photos", "--out", "run"), "; the same command goes on from the last finished epoch"),
        (("probe", "photos"), ""),
    ],
    ids=["fit", "probe"],
)
def test_ctrl_c_says_that_the_same_command_goes_on(arguments, goes_on, run_here, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"tlkeras.runs.{arguments[0]}_folder", stop)
    stopped = run_here(*arguments)
    assert stopped.returncode == 130 and stopped.stderr == f"stopped{goes_on}\n"


def test_a_wrong_path_leaves_nothing_that_the_right_one_trips_over(tmp_path, run_here):
    failed = run_here("fit", tmp_path / "fotos", "--out", tmp_path / "run")
    assert failed.returncode == 1 and "fotos" in failed.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_among_the_pictures_would_be_a_class_of_the_next(photos, run_here):
    refused = run_here("fit", photos, "--out", photos / "run")
    assert refused.returncode == 1 and "lies among the pictures" in refused.stderr
    assert sorted(path.name for path in photos.iterdir()) == ["ant", "bee"]


def test_a_fit_that_its_data_do_not_allow_leaves_nothing_that_the_next_trips_over(photos, tmp_path, run_here):
    for name, count in {"ant": 6, "bee": 3}.items():
        (tmp_path / "few" / name).mkdir(parents=True)
        for picture in sorted((photos / name).glob("*.png"))[:count]:
            shutil.copy(picture, tmp_path / "few" / name)
    options = ("--weights", "embedded", "--image-size", 64, "--out", tmp_path / "run")
    refused = run_here("fit", tmp_path / "few", *options, "--strategy", "auto")
    assert refused.returncode == 1 and "Class 'bee' has 2 training pictures" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["few"]


def test_a_full_disk_leaves_nothing_and_a_half_written_note_is_named(photos, tmp_path, run_here, monkeypatch):
    arguments = ("fit", photos, "--weights", "embedded", "--image-size", 64, "--out", tmp_path / "run")
    write = Path.write_text

    def full(path, text, **rest):
        if path.parent.name == "run.partial":
            write(path, text[:3], **rest)
            raise OSError(28, "No space left on device")
        return write(path, text, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        assert "No space left" in run_here(*arguments).stderr
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "arguments.json").write_text("")
    refused = run_here(*arguments)
    assert refused.returncode == 1 and "arguments.json is damaged" in refused.stderr
    assert f"delete {tmp_path / 'run.partial'}" in refused.stderr


def test_names_are_shown_as_they_are(run_here, monkeypatch):
    names = ["cat [copy].jpg", "[/old].jpg", "a :cat: b.jpg", "caf\udce9.jpg"]
    rows = [{"path": name, "label": "[red]", "probabilities": {"[red]": 1.0}} for name in names]
    monkeypatch.setattr("tlkeras.runs.predict_files", lambda *_: (rows, []))
    shown = run_here("predict", "run", "x.jpg", COLUMNS="120")
    assert shown.returncode == 0, shown.stderr
    assert all(name in shown.stdout for name in [*names[:3], r"caf\udce9.jpg", "[red]"])


def test_pictures_are_as_large_as_the_network_is_made_for_unless_told_otherwise(photos, monkeypatch):
    from tlkeras.runs import _load

    arguments = {"folder": photos, "backbone": "Xception", "weights": "random", "alpha": None, "image_size": None}
    data, backbone = _load({**arguments, "seed": 0, "groups": None})
    assert (data.image_size, backbone.image_size) == (299, 299)
    monkeypatch.setattr("tlkeras.backbones.load_backbone", lambda *_, **__: pytest.fail("a network was loaded first"))
    with pytest.raises(ValueError, match="no folder 'fotos'"):
        _load({**arguments, "folder": "fotos"})


def test_a_damaged_store_can_be_cleared(tmp_path, run_here):
    from tlkeras.store import FeatureStore

    store = FeatureStore(tmp_path)
    store.write("net", "title", {bytes([k]): np.zeros(2000) for k in range(50)})
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:4096] + b"garbage!" * ((len(whole) - 4096) // 8))
    assert run_here("cache", "--clear", TLKERAS_CACHE=str(tmp_path)).returncode == 0
    assert FeatureStore(tmp_path).entries() == []


def test_predictions_of_a_regression_are_printed(run_here, monkeypatch):
    monkeypatch.setattr("tlkeras.runs.predict_files", lambda *_: ([{"path": "a.png", "values": {"age": 41.25}}], []))
    shown = run_here("predict", "run", "a.png")
    assert shown.returncode == 0 and "age" in shown.stdout and "41.25" in shown.stdout


def test_probe_names_the_stages_with_intervals_and_stores_what_it_computed(photos, tmp_path, run_here, monkeypatch):
    monkeypatch.setattr("tlkeras.engines._LOADED", {})  # an engine of an earlier test would not be kept anew
    options = ("--weights", "embedded", "--image-size", 64)
    first = run_here("probe", photos, *options, "--json", TLKERAS_CACHE=str(tmp_path))
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    assert len(found["stages"]) == 7 and found["best"] in [stage["name"] for stage in found["stages"]]
    assert all(s["accuracy"]["low"] <= s["accuracy"]["value"] <= s["accuracy"]["high"] for s in found["stages"])
    assert found["stages"][-1]["accuracy"]["value"] > 0.6
    again = run_here("probe", photos, *options, "--kind", "knn", TLKERAS_CACHE=str(tmp_path))
    assert again.returncode == 0 and "out_relu" in again.stdout
    assert "0 computed by" in again.stderr
    shown = run_here("cache", TLKERAS_CACHE=str(tmp_path))
    assert "1 engine " in shown.stdout and "48 pictures" in shown.stdout and "mobilenetv2, 64 px" in shown.stdout
    assert "deleted" in run_here("cache", "--clear", TLKERAS_CACHE=str(tmp_path)).stdout
    assert "pictures" not in run_here("cache", TLKERAS_CACHE=str(tmp_path)).stdout
    assert "switched off" in run_here("cache", TLKERAS_CACHE="off").stdout


def test_advise_gives_a_strategy_and_its_reasons(photos, run_here):
    done = run_here("advise", photos, "--weights", "embedded", "--image-size", 64, "--json")
    assert done.returncode == 0, done.stderr
    advice = json.loads(done.stdout)
    assert advice["chosen"] in advice["options"] and len(advice["reasons"]) == 4
    assert advice["cell"].startswith("little data")


def test_doctor_says_what_is_in_reach(run_here, tmp_path):
    done = run_here("doctor", KERAS_HOME=str(tmp_path))
    assert done.returncode == 0 and re.search(r"embedded weights +MobileNetV2 0\.35", done.stdout)


def test_the_demo_shows_that_transfer_beats_random_features():
    from tlkeras.demo import run_demo

    intervals = run_demo(num_classes=4, per_class=8, epochs=2)
    transfer, random_features, scratch = intervals.values()
    assert transfer.value > random_features.value and transfer.value > scratch.value
    assert np.all([i.low <= i.value <= i.high for i in intervals.values()])


def few_photos(photos, root, layout):
    """Copy pictures: for each folder of the layout how many of each class, no picture twice."""
    pictures = {name: iter(sorted((photos / name).glob("*.png"))) for name in ("ant", "bee")}
    for place, count in layout.items():
        for name, left in pictures.items():
            (root / place / name).mkdir(parents=True)
            for number in range(count):
                shutil.copy(next(left), root / place / name / f"person{number}_{len(place)}.png")
    return root


def test_a_dark_picture_to_judge_by_and_groups_on_both_sides_are_no_reason_to_fail(photos, tmp_path, run_here):
    root = few_photos(photos, tmp_path / "set", {"train": 8, "val": 4})
    dark = np.zeros((64, 64, 3), np.uint8)
    dark[0, 0] = 1
    Image.fromarray(dark).save(root / "val" / "ant" / "person0_3.png")
    options = ("--weights", "embedded", "--image-size", 64, "--strategy", "probe", "--groups", r"(person\d+)")
    done = run_here("fit", root, *options, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    leaks = json.loads((tmp_path / "run" / "metrics.json").read_text())["leaks"]
    assert len(leaks) == 4 and all({path.split("/")[0] for path in leak} == {"train", "val"} for leak in leaks)
    assert (
        "4 groups of pictures that look the same or belong together" in (tmp_path / "run" / "report.html").read_text()
    )


def test_pictures_within_the_run_to_replace_are_left_alone(finished, photos, tmp_path, run_here):
    shutil.copytree(finished[0], tmp_path / "run")
    few_photos(photos, tmp_path / "run" / "pictures", {".": 4})
    refused = run_here("fit", tmp_path / "run" / "pictures", "--out", tmp_path / "run", "--overwrite")
    assert refused.returncode == 1 and "which would be replaced" in refused.stderr
    assert len(list((tmp_path / "run" / "pictures").rglob("*.png"))) == 8


def test_random_weights_are_the_seeds(photos):
    from tlkeras.runs import _load

    arguments = {"folder": photos, "backbone": "MobileNetV2", "weights": "random", "alpha": 0.35, "image_size": 32}
    first, again, other = (_load({**arguments, "seed": k, "groups": None})[1].model.get_weights() for k in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("weights", ["embedded", "preset"])
def test_a_run_that_goes_on_keeps_the_weights_that_auto_once_meant(photos, tmp_path, monkeypatch, weights):
    """A preset of KerasHub is called by its name alone, each time."""
    from tlkeras import runs
    from tlkeras.backbones import load_backbone

    arguments = {
        "folder": str(photos), "backbone": "MobileNetV2", "weights": "auto", "alpha": None, "strategy": "probe",
        "image_size": 64, "batch_size": 32, "augment": True, "seed": 0, "groups": None,
    }  # fmt: skip
    made = dataclasses.replace(load_backbone(weights="embedded", image_size=64), weights=weights)
    monkeypatch.setattr("tlkeras.backbones.load_backbone", lambda *_, **__: made)
    monkeypatch.setattr("tlkeras.recipes.transfer", lambda *_, **__: pytest.fail("stopped"))
    with pytest.raises(pytest.fail.Exception, match="stopped"):
        runs.fit_folder(arguments, tmp_path / "run")
    asked = []
    monkeypatch.setattr("tlkeras.backbones.load_backbone", lambda *_, **options: asked.append(options) or made)
    with pytest.raises(pytest.fail.Exception, match="stopped"):
        runs.fit_folder(arguments, tmp_path / "run")
    assert (asked[0]["weights"], asked[0]["alpha"]) == (("auto", None) if weights == "preset" else ("embedded", 0.35))


def test_a_tilde_that_no_shell_resolved_is_the_home(run_here, monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr("tlkeras.runs.fit_folder", lambda asked, out, **_: seen.update(asked, out=out) or sys.exit(0))
    run_here("fit", "~/photos", "--out", "~/run", HOME=str(tmp_path), USERPROFILE=str(tmp_path))
    assert seen["folder"] == str((tmp_path / "photos").resolve()) and seen["out"] == tmp_path / "run"
