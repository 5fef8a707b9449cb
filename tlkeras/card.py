"""The card of an artefact: what is in the folder, how pictures have to be prepared, and the hash of each file.

The cards of saved backbones (`modelcard`) are opened and checked by the same functions.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

if TYPE_CHECKING:
    from tlkeras.heads import Transfer

CARD, MODEL, GOLDEN, MANIFEST = "card.json", "model.keras", "golden.npz", "split.csv"
FORMAT = "tlkeras artifact 1"
MAX_CARD_BYTES = 1_000_000

# Measured on MobileNetV2 (alpha 0.35, 160 px): another engine (XLA, no oneDNN) moves a probability by 7e-6, rounding to
# float16, hence also to the TF32 of GPUs, by 2e-3, to bfloat16 by 3e-2; all weights of the first layer 1 % too large by
# 1.5e-2, swapped colours by 0.99. So the replay lets a model move between CPU and GPU; a changed byte is for the hash.
TOLERANCE = 1e-2
TOLERANCE_HALF_PRECISION = 5e-2


class ArtifactError(ValueError):
    """A folder that is no artefact, was changed, or no longer answers as it did when it was saved."""


def make_card(
    transfer: Transfer, class_names: Sequence[str], *, half_precision: bool, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Get the card of a classifier.

    Args:
        transfer: `model.transfer`.
        class_names: In the order of the outputs.
        half_precision: Whether a layer computes in 16 bits.
        extra: JSON-able things to remember.

    Raises:
        ValueError: If `extra` is no JSON.
    """
    card = {
        "format": FORMAT,
        "class_names": list(map(str, class_names)),
        "task": transfer.task,
        "preprocessing": {
            "channels": "RGB",
            "range": [0, 255],
            "image_size": transfer.image_size,
            "resize": "stretched to a square, bilinear, antialiased",
            "decoder": "tlkeras.pictures.decode_picture",
        },
        "transfer": transfer.to_dict(),
        "tolerance": TOLERANCE_HALF_PRECISION if half_precision else TOLERANCE,
        "versions": versions(),
        "extra": dict(extra or {}),
    }
    try:
        json.dumps(card, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"extra must hold plain numbers, texts, lists and dictionaries: {error}.") from error
    return card


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write the card of a folder, with the hash of each file that lies there."""
    card["files"] = {file.name: sha256(file) for file in sorted(folder.iterdir())}
    (folder / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_card(folder: Path) -> dict[str, Any]:
    """Get the card of a folder whose files are all there and as they were.

    Raises:
        ArtifactError: If there is no card, it was edited, or a file is missing or differs.
    """
    card = open_card(folder, FORMAT, "artefact", "save_artifact()")
    path = folder / CARD
    kinds = {"class_names": list, "task": str, "preprocessing": dict, "transfer": dict, "versions": dict, "files": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(card.get(name), kind)]
    if not isinstance(card.get("tolerance"), float) or not 0 < card["tolerance"] <= TOLERANCE_HALF_PRECISION:
        wrong.append("tolerance")  # a wide tolerance would let any model through
    if wrong or not isinstance(card["preprocessing"].get("image_size"), int):
        raise ArtifactError(f"{path} is incomplete or was edited: look at {', '.join(wrong) or 'image_size'}.")
    check_files(folder, card["files"], required=(MODEL, GOLDEN), optional=(MANIFEST,))
    return card


def open_card(folder: Path, format_name: str, title: str, writer: str) -> dict[str, Any]:
    """Get what the card of a folder says; only its format is checked.

    Args:
        folder: Where the card lies.
        format_name: Its "format".
        title: What the folder ought to be, for a sentence, such as "artefact".
        writer: What writes such folders, likewise.

    Raises:
        ArtifactError: If there is no card, it cannot be read, or it is of another format.
    """
    path = folder / CARD
    try:
        if path.stat().st_size > MAX_CARD_BYTES:
            raise ValueError(f"it has more than {MAX_CARD_BYTES:,} bytes")
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder} is no {title}: it holds no {CARD}. {writer} writes one.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}.") from error
    if not isinstance(card, dict) or card.get("format") != format_name:
        raise ArtifactError(f"{path} is not of the format {format_name!r} that this version of tlkeras reads.")
    return card


def check_files(folder: Path, files: dict[str, str], *, required: Iterable[str], optional: Iterable[str] = ()) -> None:
    """Check that a card lists the files that it must and none but known ones, and that each is there as it was.

    Raises:
        ArtifactError: If a file is unknown, not listed, missing or another than its SHA-256 says.
    """
    path, required = folder / CARD, set(required)
    # Known names only: a card must not make us open "../../elsewhere".
    if foreign := sorted(set(files) - required - set(optional)):
        raise ArtifactError(f"{path} lists {foreign[0]!r}, a file that does not belong here.")
    if not required <= set(files):
        raise ArtifactError(f"{path} must list {' and '.join(sorted(required))}.")
    for name, wanted in files.items():
        file = folder / name
        if not file.is_file():
            raise ArtifactError(f"{file} is missing: the folder was not copied whole.")
        if sha256(file) != wanted:
            raise ArtifactError(f"{file} is not the file that was saved (its SHA-256 differs): copy it again.")


def refuse_foreign(
    folder: Path,
    files: Iterable[str] = (MODEL, GOLDEN, MANIFEST),
    title: str = "An artefact",
    format_name: str = FORMAT,
) -> None:
    """Raise a FileExistsError where a folder holds anything but a card of this format and these files.

    The current folder is refused too: replaced, it would be gone for who stands in it.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise FileExistsError(f"{folder} is a file or a link. {title} is a folder: choose another name.")
    if folder.exists() and Path.cwd().is_relative_to(folder.resolve()):
        raise FileExistsError(f"{folder} is or holds the current folder. {title} is a folder in it: give it a name.")
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if names and (CARD not in names or names - {CARD, *files}):
        other = sorted(names - {CARD, *files} or names)[0]
        raise FileExistsError(f"{folder} is not empty and holds {other!r}: choose another name.")
    if names:
        try:
            open_card(folder, format_name, title, "tlkeras")
        except ArtifactError as error:
            raise FileExistsError(f"{error} Choose another name than {folder}, or delete it.") from error


def sha256(path: Path) -> str:
    """Get the SHA-256 of a file, in hexadecimal."""
    return checksum(path, "sha256")


def checksum(path: Path, kind: str) -> str:
    """Get the checksum of a file, in hexadecimal, of a kind that hashlib knows."""
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):  # weights may be a gigabyte
            digest.update(block)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Get the versions of all that decides what a model answers."""
    found = {"python": platform.python_version(), "keras": keras.version(), "backend": keras.backend.backend()}
    for name in ("tlkeras", "numpy", "pillow", found["backend"]):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a checkout, or a build under another name
            found[name] = "unknown"
    return found
