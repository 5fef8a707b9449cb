"""Write the address in `tlkeras/version.py` into every notebook's set-up cell: `python notebooks/set_address.py`."""

import re
import runpy
from pathlib import Path

FOLDER = Path(__file__).parent
LINE = re.compile(r"(%pip install -q )[^\\\s\"]+")


def main() -> None:
    """Change the line where it differs; all else of the file stays as it is, to the byte."""
    address = runpy.run_path(str(FOLDER.parent / "tlkeras" / "version.py"))["ADDRESS"]
    for path in sorted(FOLDER.rglob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        changed = LINE.sub(rf"\g<1>{address}", text, count=1)
        if changed != text:
            path.write_text(changed, encoding="utf-8")
            print(path.relative_to(FOLDER))


if __name__ == "__main__":
    main()
