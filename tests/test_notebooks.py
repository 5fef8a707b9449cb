"""The rules that every lesson keeps; running it (`pytest notebooks`) checks its claims."""

import ast
import copy
import inspect
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tlkeras as tl
from tlkeras.version import ADDRESS

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
LESSONS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
SOLUTIONS = sorted((FOLDER / "solutions").glob("*.ipynb"))
SECTIONS = ["Look at the data", "The simplest baseline", "Predict", "What this does not show", "Exercises", "Reading"]
ABSOLUTE = re.compile(r"(?<![\w.:/~])/(home|root|Users|work|tmp|usr|opt|mnt|var|private|content)/|\b[A-Z]:\\")
COMPARED = "nbval-check-output"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def prose(notebook: dict) -> str:
    return "\n".join(source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")


def section(notebook: dict, name: str) -> str:
    """What stands under the heading `## name`."""
    found = re.search(rf"^## {name}\b.*?$(.*?)(?=^## |\Z)", prose(notebook), re.M | re.S)
    return found.group(1) if found else ""


def seen(cell: dict) -> str:
    """All that a reader sees of a cell's outputs, pictures left out."""
    without_pictures = [
        {key: value for key, value in output.get("data", {}).items() if not key.startswith("image/")} or output
        for output in cell["outputs"]
    ]
    return json.dumps(without_pictures, ensure_ascii=False)


def common_problems(notebook: dict, setup: str) -> list[str]:
    """The rules for lessons and solutions alike."""
    cells, code, found = notebook["cells"], code_cells(notebook), []
    if cells[0]["cell_type"] != "markdown" or cells[1]["cell_type"] != "code" or source(cells[1]) != setup:
        found.append("the second cell is not the common setup cell")
    for number, cell in enumerate(code, start=1):
        text, lines = source(cell), source(cell).splitlines()
        if len(lines) > 20:
            found.append(f"code cell {number} has {len(lines)} lines")
        if cell["execution_count"] != number:
            found.append(f"code cell {number} was not run in order")
        if re.search(r"^(print\(|tl\.plot_)", text, re.M) and not cell["outputs"]:
            found.append(f"code cell {number} lost its output")
        if COMPARED in cell["metadata"].get("tags", []) and not cell["outputs"]:
            found.append(f"code cell {number} is compared and has nothing to compare")
        if any(output["output_type"] == "error" or output.get("name") == "stderr" for output in cell["outputs"]):
            found.append(f"code cell {number} ends in a warning or an error")
        if ABSOLUTE.search(text) or ABSOLUTE.search(seen(cell)):
            found.append(f"code cell {number} names an absolute path")
    if ABSOLUTE.search(prose(notebook)):
        found.append("the prose names an absolute path")
    for one, two in itertools.pairwise(cells):
        if one["cell_type"] == two["cell_type"] == "code":
            found.append(f"two code cells in a row: {source(two).splitlines()[0]}")
    if not any(re.search(r"^\s*assert ", source(cell), re.M) for cell in code):
        found.append("nothing is asserted")
    return found


def lesson_problems(notebook: dict, name: str, setup: str) -> list[str]:
    """All that is wrong with a lesson."""
    found = common_problems(notebook, setup)
    first = source(notebook["cells"][0])
    if not re.match(r"# [^\n]+\?\n", first):
        found.append("the title is no question")
    places = [first.find(word) for word in ("**You will**", "**Before:**", "**Time:**")]
    if -1 in places or places != sorted(places):
        found.append("the first cell does not say You will, Before, Time, in this order")
    headings = [line for line in re.findall(r"^## (.+)$", prose(notebook), re.M) if line in SECTIONS]
    if headings != SECTIONS:
        found.append(f"the sections are {headings}")
    least = 15 if name.startswith("00") else 25
    if not least <= len(notebook["cells"]) <= 45:
        found.append(f"{len(notebook['cells'])} cells")
    exercises = re.findall(r"^(\d)\. .*?\(Check: .+?\)", section(notebook, "Exercises"), re.M | re.S)
    if exercises != ["1", "2", "3"]:
        found.append("there are not three exercises, each with a value to check against")
    if f"(solutions/{name})" not in section(notebook, "Exercises"):
        found.append("the exercises do not link to their answers")
    if f'`tl.check("{name[:2]}.1", answer)`' not in section(notebook, "Exercises"):
        found.append("the exercises do not name their check")
    if "https://" not in section(notebook, "Reading"):
        found.append("nothing to read")
    if "(GLOSSARY.md)" not in prose(notebook):
        found.append("no link to the glossary")
    return found


@pytest.fixture(scope="module")
def setup() -> str:
    return source(read(LESSONS[0])["cells"][1])


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lesson_keeps_the_rules(path, setup):
    assert lesson_problems(read(path), path.name, setup) == []


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_solutions_keep_the_rules_and_answer_each_exercise(path, setup):
    notebook = read(path)
    assert common_problems(notebook, setup) == []
    assert re.findall(r"^\*\*(\d)\.\*\*", prose(notebook), re.M) == ["1", "2", "3"]
    # The assert of an answer stands in the last code cell before the next answer begins.
    answers = re.split(r"\*\*\d\.\*\*", "\n".join(source(cell) for cell in notebook["cells"]))[1:]
    for number, answer in enumerate(answers, start=1):
        assert re.search(rf'^\s*assert tl\.check\("{path.name[:2]}\.{number}", ', answer, re.M)


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_solutions_call_the_package_as_it_is_now(path):
    assert misfits("\n".join(map(source, code_cells(read(path))))) == []


def misfits(code: str) -> list[str]:
    """The calls `tl.name(...)` in this code that `tlkeras` would not take: no such name, or other arguments."""
    found = []
    for node in ast.walk(ast.parse(re.sub(r"(?m)^( *)%.*$", r"\1pass", code))):
        if not isinstance(node, ast.Call) or not re.fullmatch(r"tl\.\w+", ast.unparse(node.func)):
            continue
        try:
            signature = inspect.signature(getattr(tl, node.func.attr))
            words = {word.arg: word.value for word in node.keywords if word.arg}
            unpacked = len(words) < len(node.keywords) or any(isinstance(value, ast.Starred) for value in node.args)
            (signature.bind_partial if unpacked else signature.bind)(*node.args, **words)
        except (AttributeError, TypeError) as error:
            found.append(f"{ast.unparse(node)}: {error}")
    return found


def test_calls_that_do_not_fit_are_found():
    assert misfits("%pip install x\ntl.Split(validation=0.2)\ntl.load_arrays(images, *labels)") == []
    assert len(misfits("tl.load_arays(1)\ntl.Split(valid=0.2)\ntl.set_head(model)")) == 3


def test_setup_is_ten_lines_at_most(setup):
    assert len([line for line in setup.splitlines() if line.strip()]) <= 10


def test_setup_installs_from_the_one_address_and_a_script_changes_it_everywhere(setup, tmp_path):
    assert f"%pip install -q {ADDRESS}\n" in setup
    shutil.copytree(FOLDER, tmp_path / "notebooks")
    (tmp_path / "tlkeras").mkdir()
    (tmp_path / "tlkeras" / "version.py").write_text('ADDRESS = "git+https://example.org/a/tlkeras"\n')
    before = {path: read(path) for path in sorted((tmp_path / "notebooks").rglob("*.ipynb"))}
    subprocess.run([sys.executable, str(tmp_path / "notebooks" / "set_address.py")], check=True, capture_output=True)
    for path, notebook in before.items():
        moved = setup.replace(f"-q {ADDRESS}\n", "-q git+https://example.org/a/tlkeras\n")
        changed = read(path)
        assert source(changed["cells"][1]) == moved
        changed["cells"][1] = notebook["cells"][1]
        assert changed == notebook


def test_every_lesson_has_its_solutions_and_a_line_in_the_syllabus():
    assert [path.name for path in SOLUTIONS] == [path.name for path in LESSONS]
    listed = re.findall(r"^\| \d\d \| \[.+?\]\((.+?)\)", (FOLDER / "README.md").read_text(encoding="utf-8"), re.M)
    assert listed == [path.name for path in LESSONS]


def test_titles_in_the_syllabus_are_those_of_the_lessons():
    syllabus = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in LESSONS:
        title = source(read(path)["cells"][0]).splitlines()[0].removeprefix("# ")
        assert f"[{title}]({path.name})" in syllabus


@pytest.mark.parametrize(
    "path", [*LESSONS, *SOLUTIONS, *sorted(FOLDER.glob("*.md"))], ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_relative_links_lead_somewhere(path):
    text = prose(read(path)) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text)
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_glossary_is_sorted_and_gives_each_term_one_sentence():
    lines = re.findall(r"^- (.+)$", (FOLDER / "GLOSSARY.md").read_text(encoding="utf-8"), re.M)
    entries = [re.fullmatch(r"\*\*(.+?)\*\*: ([^.]+)\.", line) for line in lines]
    assert [line for line, entry in zip(lines, entries, strict=True) if not entry] == []
    terms = [entry.group(1) for entry in entries]
    assert terms == sorted(set(terms), key=str.lower)


def put(cell: dict, text: str) -> None:
    cell["source"] = text


BREACHES = {
    "no question": lambda cells: put(cells[0], source(cells[0]).replace("?", ".", 1)),
    "You will, Before, Time": lambda cells: put(cells[0], source(cells[0]).replace("**Before:**", "Before")),
    "common setup": lambda cells: put(cells[1], source(cells[1]) + "\nimport sys"),
    "has 21 lines": lambda cells: put(first_code(cells), "x = 1\n" * 20 + "x = 2"),
    "not run in order": lambda cells: first_code(cells).update(execution_count=None),
    "lost its output": lambda cells: [cell.update(outputs=[]) for cell in cells if cell["cell_type"] == "code"],
    "nothing to compare": lambda cells: first_code(cells).update(outputs=[], metadata={"tags": [COMPARED]}),
    "a warning or an error": lambda cells: first_code(cells).update(
        outputs=[{"output_type": "stream", "name": "stderr", "text": ["UserWarning: no"]}]
    ),
    "names an absolute path": lambda cells: put(first_code(cells), 'open("/home/me/data.csv")'),
    "prose names an absolute path": lambda cells: put(cells[2], "It lies in /tmp/run."),
    "two code cells in a row": lambda cells: cells.insert(4, copy.deepcopy(first_code(cells))),
    "nothing is asserted": lambda cells: [put(cell, source(cell).replace("assert ", "bool ")) for cell in cells],
    "the sections are": lambda cells: [put(cell, source(cell).replace("## Predict", "## Guess")) for cell in cells],
    "46 cells": lambda cells: cells.extend([copy.deepcopy(cells[0])] * (46 - len(cells))),
    "not three exercises": lambda cells: [put(cell, source(cell).replace("(Check: ", "(")) for cell in cells],
    "do not link to their answers": lambda cells: [put(c, source(c).replace("(solutions/", "(")) for c in cells],
    "do not name their check": lambda cells: [put(cell, source(cell).replace("tl.check", "check")) for cell in cells],
    "nothing to read": lambda cells: [put(cell, source(cell).replace("https://", "")) for cell in cells],
    "no link to the glossary": lambda cells: [put(c, source(c).replace("GLOSSARY", "WORDS")) for c in cells],
}


def first_code(cells: list[dict]) -> dict:
    """The first code cell after the setup cell."""
    return next(cell for cell in cells[2:] if cell["cell_type"] == "code")


@pytest.mark.parametrize("complaint", BREACHES)
def test_each_rule_notices_when_it_is_broken(complaint, setup):
    path = LESSONS[-1]
    notebook = read(path)
    assert not any(complaint in problem for problem in lesson_problems(notebook, path.name, setup))
    BREACHES[complaint](notebook["cells"])
    assert any(complaint in problem for problem in lesson_problems(notebook, path.name, setup))
