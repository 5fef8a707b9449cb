"""What the lessons claim must fall when the effect is taken away, and is tried on photographs with ImageNet weights.

Slow (each row runs a whole notebook): `pytest -m slow tests/test_claims.py`.
"""

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"

# Run after the setup cell of a lesson: `tl` is there.
MUTATIONS = {
    "labels shuffled": """
import numpy as _np
def _shuffled(make):
    def made(*arguments, **options):
        images, labels = make(*arguments, **options)
        return images, _np.random.default_rng(0).permutation(labels)
    return made
for _name in ("make_fractals", "make_digits", "load_near"):
    setattr(tl, _name, _shuffled(getattr(tl, _name)))
""",
    "random weights": """
def _untrained(load):
    return lambda *arguments, **options: load(*arguments, **{**options, "weights": None})
tl.load_backbone = _untrained(tl.load_backbone)
""",
    "freeze dropped": """
import tlkeras.freezing, tlkeras.training, tlkeras.recipes
def _open(model, *arguments, **options):
    chosen = [n for n in model.transfer.backbone_layers if model.get_layer(n).weights]
    tlkeras.freezing.set_trainable_layers(model, chosen)
    return tuple(chosen)
tl.unfreeze_top = tlkeras.recipes.unfreeze_top = _open
""",
    "pretraining dropped": """
import dataclasses as _dataclasses
def _idle(pretrain):
    def run(*arguments, settings, **options):
        still = _dataclasses.replace(settings, learning_rate=1e-12, weight_decay=0.0)
        return pretrain(*arguments, settings=still, **options)
    return run
tl.pretrain = _idle(tl.pretrain)
""",
    "checks dropped": """
import tlkeras.modelcard
tlkeras.modelcard.check_files = lambda *arguments, **options: None
tlkeras.modelcard.feature_gaps = lambda features, golden: 0 * features[:, 0]
""",
    "sounds of other things": """
import dataclasses as _dataclasses
def _mixed(make):
    def made(*arguments, **options):
        things = make(*arguments, **options)
        return _dataclasses.replace(things, sounds=np.random.default_rng(0).permutation(things.sounds))
    return made
tl.make_struck_objects = _mixed(tl.make_struck_objects)
""",
    "boxes of other pictures": """
def _dealt(make):
    def made(*arguments, **options):
        images, boxes, labels = make(*arguments, **options)
        return images, [*boxes[1:], boxes[0]], [*labels[1:], labels[0]]
    return made
tl.make_scenes = _dealt(tl.make_scenes)
""",
    "views of one strength": """
def _alike(task):
    return lambda strength=0.5, **options: task(strength=0.5, **options)
tl.SimCLR = _alike(tl.SimCLR)
""",
}
# Which mutations must bring down at least one assert of a lesson; what is not listed has no bearing on its claims.
TABLE = {
    "00_start_here": ["labels shuffled", "random weights"],
    "01_two_phases": ["labels shuffled", "random weights", "freeze dropped"],
    "02_pretrained_features": ["labels shuffled", "random weights"],
    "03_cnn_codes": ["labels shuffled", "random weights"],
    "04_from_scratch": ["labels shuffled", "random weights"],
    "05_how_many_layers": ["labels shuffled", "random weights", "freeze dropped"],
    "06_learning_rates": ["labels shuffled", "random weights"],
    "07_depth": ["labels shuffled", "random weights"],
    "08_which_strategy": ["labels shuffled", "random weights"],
    "09_which_backbone": ["labels shuffled", "random weights"],
    "10_trust_the_number": ["labels shuffled", "random weights"],
    "11_bug_museum": ["labels shuffled", "random weights"],
    "12_xrays": ["random weights"],
    "13_faster": ["labels shuffled", "random weights"],
    "14_own_project": ["labels shuffled", "random weights"],
    "15_without_labels": ["pretraining dropped"],
    "16_which_pretext": ["sounds of other things", "views of one strength"],
    "17_share_a_model": ["labels shuffled", "random weights", "checks dropped"],
    "18_detection": ["random weights", "boxes of other pictures"],
}


def fallen_asserts(path: Path, mutation: str | None = None) -> list[str]:
    """What the asserts say that fail when a lesson runs, its first cell followed by a mutation."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, 4)
    if mutation:
        notebook.cells.insert(2, nbformat.v4.new_code_cell(MUTATIONS[mutation]))
    client = NotebookClient(notebook, timeout=1200, kernel_name="python3", allow_errors=True,
                            resources={"metadata": {"path": str(path.parent)}})  # fmt: skip
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    errors = [output for output in outputs if "ename" in output]
    if mutation is None:  # an error that is no assert is a fault of the lesson
        assert [error.ename for error in errors if error.ename != "AssertionError"] == []
    return [error.evalue for error in errors if error.ename == "AssertionError"]


@pytest.mark.slow
@pytest.mark.parametrize(("lesson", "mutation"), [(name, row) for name, rows in TABLE.items() for row in rows])
def test_a_claim_falls_when_its_effect_is_taken_away(lesson, mutation, monkeypatch):
    monkeypatch.setenv("TLKERAS_WORLD", "embedded")
    fallen = fallen_asserts(FOLDER / f"{lesson}.ipynb", mutation)
    print(lesson, mutation, *fallen, sep="\n  ")
    assert fallen


@pytest.mark.slow
@pytest.mark.parametrize("lesson", TABLE)
def test_a_lesson_runs_on_photographs(lesson, shared, monkeypatch):
    monkeypatch.setenv("TLKERAS_WORLD", "imagenet")
    monkeypatch.setenv("KERAS_HOME", str(shared / "keras_home"))
    monkeypatch.setenv("TLKERAS_DATA", str(shared / "data" / "flowers"))
    monkeypatch.setenv("TLKERAS_XRAYS", str(shared / "data" / "chest_xray_pneumonia"))
    assert fallen_asserts(FOLDER / f"{lesson}.ipynb") == []


def test_every_lesson_stands_in_the_table():
    assert sorted(TABLE) == sorted(path.stem for path in FOLDER.glob("[0-9][0-9]_*.ipynb"))
