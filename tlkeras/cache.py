"""The cache on disk: where it lies, and the compiled engines in it. Stored features are `store`'s."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

log = logging.getLogger("tlkeras")

MAX_FILES, MAX_BYTES = 100, 3_000_000_000  # an engine is a graph, its weights and what was compiled of them


def cache_root() -> Path | None:
    """Get the folder of compiled engines and stored features: TLKERAS_CACHE or the user's; None where that is "off"."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("TLKERAS_CACHE")
    if chosen == "off":
        return None
    return Path(chosen).expanduser() if chosen else user_cache_path("tlkeras")


def list_engines() -> list[Path]:
    """Get the files of all engines that are kept on disk."""
    folder = cache_root()
    return sorted(file for file in (folder / "engines").glob("*") if file.is_file()) if folder else []


def clear_engines() -> None:
    """Delete all engines that are kept on disk."""
    for file in list_engines():
        _delete(file)


def read_engine(core, path: Path):
    """Get a kept network, or None where there is none or it is not what was written."""
    try:
        if path.with_suffix(".sha").read_text() != _digest(path):
            raise OSError("its checksum is another")
        return core.read_model(path)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as error:
        log.warning("the engine %s is damaged (%s) and is made anew.", path, str(error).strip().splitlines()[-1])
        # What the processor's compiler made of it may be damaged as well.
        for file in (path, *path.parent.glob("*.blob")):
            _delete(file)
        return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes() + path.with_suffix(".bin").read_bytes()).hexdigest()


def _make_room() -> None:
    """Delete the engines that were kept first where there are too many, or too many bytes of them."""

    def age_and_size(file: Path) -> tuple[float, int]:
        try:
            status = file.stat()
        except OSError:  # another process was faster
            return 0.0, 0
        return status.st_mtime, status.st_size

    files = sorted(((*age_and_size(file), file) for file in list_engines()), reverse=True)
    total = 0
    for count, (_, size, file) in enumerate(files):
        total += size
        if count >= MAX_FILES or total > MAX_BYTES:
            _delete(file)


def _delete(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError:
        log.debug("%s is in use and stays", file)


def save_engine(graph, path: Path) -> None:
    """Keep a converted network, written under another name first, so that no reader sees half of it."""
    import openvino

    _make_room()
    draft = path.with_name(f".{os.getpid()}-{path.stem}.xml")
    try:
        openvino.save_model(graph, draft, compress_to_fp16=False)
        os.replace(draft.with_suffix(".bin"), path.with_suffix(".bin"))
        os.replace(draft, path)
        note = draft.with_suffix(".sha")
        note.write_text(_digest(path))
        os.replace(note, path.with_suffix(".sha"))
    except (OSError, RuntimeError) as error:
        log.warning("the engine could not be kept in %s: %s", path.parent, error)
    finally:
        for suffix in (".xml", ".bin", ".sha"):
            _delete(draft.with_suffix(suffix))
