"""Look at every file of a folder once: which pictures can be used, which cannot, and why.

A picture that does not decode stops `fit` in the middle of an epoch, and the error names no file. So every file is
decoded here first, with the very function that training and prediction use, and whatever fails is set aside by name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from tlkeras.duplicates import appearance
from tlkeras.pictures import PictureError, PictureFile, open_picture, read_picture, reserve, to_pixels
from tlkeras.progress import show_progress

FURNITURE = {"__macosx", "thumbs.db", "desktop.ini"}
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training", "train_set", "training_set"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "val_set", "validation_set"), "validation"),
    **dict.fromkeys(("test", "testing", "test_set", "testing_set"), "test"),
}
AT_A_TIME = 16  # pictures that a thread is handed
LAYOUT = "expected PATH/class_name/picture.jpg, or PATH/train/class_name/… with PATH/val/class_name/… beside it"


@dataclass(frozen=True)
class SetAside:
    """A file that was found and is not used, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Picture:
    """A picture that decodes; `path` is relative to the scanned folder, with forward slashes on every machine."""

    path: str
    class_name: str
    split: str | None  # "train", "validation" or "test" where the folder says so
    sha256: str
    hash: int = 0  # 64 bits, perceptual
    thumbnail: bytes = field(default=b"", repr=False)  # 8 x 8 RGB


@dataclass(frozen=True)
class Scan:
    """What lies in a folder: the usable pictures in order of their paths, and everything else by name."""

    root: Path
    pictures: tuple[Picture, ...]
    class_names: tuple[str, ...]
    set_aside: tuple[SetAside, ...]
    notes: tuple[str, ...]
    pixels: np.ndarray | PictureFile | None = field(repr=False)  # uint8 (picture, height, width, 3), as `pictures`
    cache: str  # where `pixels` lies: "memory", "disk" or "none"


def find_folder(path: str | os.PathLike) -> Path:
    """Get a folder that is there, a tilde resolved; a ValueError says what lies in its place."""
    root = Path(path).expanduser()
    if not root.exists():
        parent = next(folder for folder in root.absolute().parents if folder.exists())
        raise ValueError(f"There is no folder {str(root)!r}. {str(parent)!r} holds {_some(os.listdir(parent))}.")
    if not root.is_dir():
        raise ValueError(f"{str(root)!r} is a file; {LAYOUT}.")
    return root


def scan_folder(path: str | os.PathLike, *, image_size: int = 224, looks: bool = True) -> Scan:
    """Get every usable picture under a folder, and every other file by name with the reason.

    Each file is read once: decoded with `decode_picture`, hashed by content (for the manifest) and by appearance (to
    find near-duplicates). Decoded pictures are kept where there is room, so training does not decode them again.

    Args:
        path: a folder of class folders, or of train/ with val/ (valid/, validation/) and perhaps test/ of such.
            Pictures in deeper folders belong to the class folder they are under.
        image_size: side in pixels to which pictures are decoded.
        looks: whether to take down how pictures look; without it near-duplicates cannot be found.

    Returns:
        A Scan, in order of path, whatever order the file system has.

    Raises:
        ValueError: when there is no such folder, or it does not hold at least two classes of usable pictures.
    """
    root = find_folder(path)
    walk = _Walk(root)
    files = sorted(walk.files(), key=lambda file: _order(file[0]))
    pixels, cache = reserve(len(files), image_size)

    def read(index: int) -> Picture | SetAside:
        relative, class_name, split = files[index]
        try:
            content = read_picture(root / relative)
            image = open_picture(content, image_size)
            if pixels is not None:
                pixels[index] = to_pixels(image, image_size)
            # The appearance must not depend on how far a JPEG was reduced for the image size.
            small = open_picture(content, 64) if looks and image.format in ("JPEG", "MPO") else image
        except PictureError as error:
            return SetAside(relative, error.reason)
        look = appearance(small) if looks else ()
        return Picture(relative, class_name, split, hashlib.sha256(content).hexdigest(), *look)

    _import_first()
    # Pillow's warnings would name no file; what matters of them is in the reasons.
    with warnings.catch_warnings(), ThreadPoolExecutor(1 + (os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")
        # Several at a time: handing over each one alone costs a third of the time that it takes.
        parts = [range(start, min(start + AT_A_TIME, len(files))) for start in range(0, len(files), AT_A_TIME)]
        done = chain.from_iterable(pool.map(lambda part: [read(index) for index in part], parts))
        found = list(show_progress(done, len(files), "Looking at pictures"))

    trained = {item.class_name for item in found if isinstance(item, Picture) and item.split in (None, "train")}
    for index, item in enumerate(found):
        if isinstance(item, Picture) and item.class_name not in trained:
            found[index] = SetAside(item.path, f"class {item.class_name!r} has no picture in train/")
    kept = [index for index, item in enumerate(found) if isinstance(item, Picture)]
    if pixels is not None:
        for row, index in enumerate(kept):  # in place: a copy would need the memory twice
            if row != index:
                pixels[row] = pixels[index]
        pixels = pixels[: len(kept)]
    set_aside = [*walk.set_aside, *(item for item in found if isinstance(item, SetAside))]
    for name in sorted(walk.class_names - trained):
        walk.notes.append(f"class folder {name!r} holds no usable picture to train on and is dropped")
    if walk.hidden:
        walk.notes.append(f"{len(walk.hidden)} hidden or system files and folders ignored: {_some(walk.hidden, 20)}")
    if len(trained) < 2:
        raise ValueError(_too_few(root, walk.class_names, sorted(trained), set_aside))
    return Scan(
        root=root,
        pictures=tuple(found[index] for index in kept),
        class_names=tuple(sorted(trained)),
        set_aside=tuple(sorted(set_aside, key=lambda item: _order(item.path))),
        notes=tuple(walk.notes),
        pixels=pixels,
        cache=cache,
    )


def list_files(paths: Iterable[Path]) -> list[Path]:
    """Get these files, and those in these folders at any depth in order of their names, without hidden ones.

    Raises:
        ValueError: when a folder holds none.
    """
    files = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = [file for file in path.rglob("*") if not any(map(_is_furniture, file.relative_to(path).parts))]
        inside = sorted((file for file in inside if not file.is_dir()), key=lambda file: _order(str(file)))
        if not inside:
            raise ValueError(f"{path} is a folder without a file.")
        files += inside
    return files


class _Walk:
    """Finds the files of each class; folders are entered once, so links that loop come to an end."""

    def __init__(self, root: Path):
        self.root = root
        self.set_aside: list[SetAside] = []
        self.notes: list[str] = []
        self.class_names: set[str] = set()
        self.hidden: list[str] = []

    def files(self) -> Iterator[tuple[str, str, str | None]]:
        """Yield (path relative to the root, class name, split or None)."""
        top = self._folders(self.root)
        names = {name: SPLIT_FOLDERS.get(name.lower()) for name in top}
        splits = [split for split in names.values() if split]
        if len(splits) != len(set(splits)):
            raise ValueError(f"{str(self.root)!r} holds {_some(top)}: two names for one split; keep one of them.")
        train = next((name for name, split in names.items() if split == "train"), None)
        if train is None and splits and len(splits) == len(top):
            raise ValueError(f"{str(self.root)!r} holds {_some(top)} but no train/; {LAYOUT}.")
        # A class may be "train" (beside "bus"): a split holds folders, beside splits, nothing, or a twin of itself.
        inside = set() if train is None else self._peek(top[train])
        beside = [folder for name, folder in top.items() if name != train]
        twin = len(beside) == 1 and len(inside) > 1 and self._peek(beside[0]) == inside
        if not inside or not (len(splits) > 1 or not beside or twin):
            yield from self._classes(top, None)
            return
        for name, folder in top.items():
            if names[name]:
                yield from self._classes(self._folders(folder), names[name])
            else:
                self.set_aside.append(SetAside(f"{name}/", "a folder beside train/ that is no split; not read"))

    def _classes(self, folders: dict[str, Path], split: str | None) -> Iterator[tuple[str, str, str | None]]:
        classes = {name: _identity(folder) for name, folder in folders.items()}
        for name, folder in folders.items():
            self.class_names.add(class_name := composed(name))
            seen = {*classes.values()} - {classes[name]} | {_identity(self.root), _identity(folder.parent)}
            waiting = [folder]
            while waiting:
                current = waiting.pop()
                try:
                    if _identity(current) in seen:
                        reason = "a link to a folder read elsewhere"
                        self.set_aside.append(SetAside(self._relative(current) + "/", reason))
                        continue
                    seen.add(_identity(current))
                    entries = self._entries(current)
                except OSError as error:
                    reason = f"cannot be read: {error.strerror or error}"
                    self.set_aside.append(SetAside(self._relative(current) + "/", reason))
                    continue
                waiting += [entry for entry in reversed(entries) if os.path.isdir(entry)]
                yield from ((self._relative(entry), class_name, split) for entry in entries if not os.path.isdir(entry))

    def _folders(self, folder: Path) -> dict[str, Path]:
        entries = self._entries(folder)
        for entry in entries:
            if not os.path.isdir(entry):
                self.set_aside.append(SetAside(self._relative(entry), "outside the class folders"))
        return {entry.name: entry for entry in entries if os.path.isdir(entry)}

    def _peek(self, folder: Path) -> set[str]:
        with contextlib.suppress(OSError):
            return {entry.name for entry in folder.iterdir() if os.path.isdir(entry) and not _is_furniture(entry.name)}
        return set()

    def _entries(self, folder: Path) -> list[Path]:
        entries = sorted(folder.iterdir(), key=lambda entry: _order(entry.name))
        wanted = [entry for entry in entries if not _is_furniture(entry.name)]
        self.hidden += [self._relative(entry) for entry in entries if _is_furniture(entry.name)]
        return wanted

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _is_furniture(name: str) -> bool:
    return name.startswith(".") or name.lower() in FURNITURE


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def composed(text: str) -> str:
    """Get a name with composed accents: macOS stores them decomposed, and both machines have to agree."""
    return unicodedata.normalize("NFC", text)


def _order(path: str) -> tuple[str, str]:
    return composed(path), path


def _import_first() -> None:
    """Import before the threads start, which would race for it."""
    import imagehash  # noqa: F401
    import scipy.fftpack  # noqa: F401
    from PIL import Image

    Image.init()


def _some(names: Iterable[str], limit: int = 6) -> str:
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(repr(name) for name in names[:limit]) + more) or "nothing"


def _too_few(root: Path, seen: set[str], usable: list[str], set_aside: list[SetAside]) -> str:
    text = f"{str(root)!r} holds {len(usable)} class folders with usable pictures ({_some(usable)}); two or more needed"
    if seen - set(usable):
        text += f"; without usable pictures: {_some(seen - set(usable))}"
    reasons = Counter(item.reason for item in set_aside).most_common(3)
    if reasons:
        text += "; set aside: " + ", ".join(f"{count} x {reason}" for reason, count in reasons)
    inside = [root / name for name in seen if (root / name).is_dir()]
    deeper = [name for name in inside if sum(os.path.isdir(entry) for entry in name.iterdir()) > 1]
    with contextlib.suppress(OSError):  # a class folder, perhaps: those beside it hold files of the same kinds
        beside = [] if seen else [*filter(Path.is_dir, root.absolute().parent.iterdir())]
        kinds = {file.suffix for file in root.iterdir()} - {""}
        if len(beside) > 1 and all(kinds & {file.suffix for file in other.iterdir()} for other in beside):
            deeper = [root.absolute().parent]
    if len(deeper) == 1:
        text += f"; did you mean {str(deeper[0])!r}?"
    return f"{text}. Layout: {LAYOUT}."
