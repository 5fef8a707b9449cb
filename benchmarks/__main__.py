"""Run a claim's script: `python -m benchmarks CLAIM [its arguments]`; without one, say which there are."""

import ast
import runpy
import sys
from pathlib import Path

SCRIPTS = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.py")) if not path.stem.startswith("_")}

if len(sys.argv) < 2 or sys.argv[1] not in SCRIPTS:
    for name, path in SCRIPTS.items():
        print(f"{name:18}{ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))).splitlines()[0]}")
    sys.exit(0 if len(sys.argv) < 2 else 2)
script = SCRIPTS[sys.argv.pop(1)]
sys.argv[0] = str(script)
sys.path.insert(0, str(script.parent))  # as `python benchmarks/CLAIM.py` has it, for what the scripts share
runpy.run_path(str(script), run_name="__main__")
