"""Measure a claim, or all of them.

- `python -m benchmarks`: say which claims there are.
- `python -m benchmarks CLAIM ...`: run its script with its arguments.
- `python -m benchmarks FOLDER ... [--quick] [--json]`: run all about speed, and about accuracy on these folders of
  pictures, in turn; with --json one object a claim and nothing else. The first folder is that of `extraction` and
  `growth`: flowers, for the figures of README.md.
"""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

SCRIPTS = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.py")) if not path.stem.startswith("_")}
FOLDERS = {
    "startup": 0,
    "autotuning": 0,
    "tracing": 0,
    "slices": 0,
    "conversion": 0,
    "extraction": 1,
    "growth": 1,
    "guide": None,
    "depth": None,
    "strategies": None,
}


def run_all(arguments: list[str]) -> int:
    """Run the scripts of `FOLDERS` with the first so many folders (None: all), and get how many of them failed."""
    options = [argument for argument in arguments if argument.startswith("-")]
    folders = [argument for argument in arguments if argument not in options]
    if set(options) - {"--quick", "--json"} or not folders or not all(Path(folder).is_dir() for folder in folders):
        print(__doc__, file=sys.stderr)
        return 2
    failed = 0
    for name, count in FOLDERS.items():
        command = [sys.executable, SCRIPTS[name], *folders[:count], *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
            for line in process.stdout:
                if "--json" not in options or line.startswith("{"):
                    print(line, end="", flush=True)
        failed += process.returncode != 0
    return failed


if len(sys.argv) < 2:
    for name, path in SCRIPTS.items():
        print(f"{name:18}{ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))).splitlines()[0]}")
elif sys.argv[1] in SCRIPTS:
    script = SCRIPTS[sys.argv.pop(1)]
    sys.argv[0] = str(script)
    sys.path.insert(0, str(script.parent))  # as `python benchmarks/CLAIM.py` has it, for what the scripts share
    runpy.run_path(str(script), run_name="__main__")
else:
    sys.exit(run_all(sys.argv[1:]))
