"""Pictures: from a file to RGB numbers, by the one decoder that scan, training and prediction share."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import shutil
import stat
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.arguments import whole_number

logger = logging.getLogger("tlkeras")

# A closed list: Pillow knows formats (EPS) that start other programs, and nobody's photographs are in them.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
LARGEST_FILE = 256 * 2**20  # bytes; a film or an archive among the pictures must not be read into memory
MEMORY_SHARE = 0.25  # of the memory that is free now: it is needed twice for a moment, and the network wants the rest
# Bytes, however much is free, so that memory stays flat; a file costs 0.05 to 0.3 ms more for each picture of 224 px.
MEMORY_LIMIT = 512 * 2**20
DISK_SHARE = 0.5
CGROUP = Path("/sys/fs/cgroup")  # what a container may use


class PictureError(ValueError):
    """A picture that cannot be used; `reason` says why in a few words."""

    def __init__(self, reason: str, path: str | None = None):
        """Put the path, where there is one, before the reason."""
        super().__init__(f"{path}: {reason}" if path else reason)
        self.reason = reason


def decode_picture(source: str | os.PathLike | bytes, image_size: int | None = None) -> np.ndarray:
    """Get one picture as uint8 RGB in [0, 255], the way scan, training and prediction all see it.

    Use it wherever a file becomes numbers: two decoders differ by a few grey levels, which is enough to change a
    prediction. The rotation written by a camera is applied, transparency is laid on white, 16-bit grey is scaled to
    8 bits, and of an animation the first frame counts.

    Args:
        source: a path, or the bytes of a file.
        image_size: side in pixels of the square that the picture is stretched to (bilinear, antialiased), or None
            for its own size.

    Returns:
        uint8 of shape (height, width, 3).

    Raises:
        PictureError: (a ValueError) when the file is missing, empty, truncated, too large or no picture.

    >>> import io
    >>> from PIL import Image
    >>> file = io.BytesIO()
    >>> Image.new("L", (40, 30), 128).save(file, "PNG")
    >>> decode_picture(file.getvalue(), 16).shape
    (16, 16, 3)
    """
    if isinstance(source, bytes):
        return to_pixels(open_picture(source, image_size), image_size)
    try:
        return decode_picture(read_picture(source), image_size)
    except PictureError as error:
        raise PictureError(error.reason, os.fspath(source)) from error.__cause__


def read_picture(path: str | os.PathLike) -> bytes:
    """Get the bytes of a file that may be a picture, or a `PictureError`."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise PictureError("not a regular file")
        if status.st_size > LARGEST_FILE:
            raise PictureError(f"{status.st_size / 2**20:,.0f} MiB, more than the {LARGEST_FILE // 2**20} MiB allowed")
        return Path(path).read_bytes()
    except OSError as error:
        raise PictureError(f"cannot be read: {error.strerror or error}") from error


def open_picture(content: bytes, target: int | None = None) -> Any:
    """Get a Pillow image of mode RGB, upright, of `target` pixels or more where the format can be read reduced."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not content:
        raise PictureError("empty file (0 bytes)")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = image.size
        # Between one and two times its limit Pillow only warns, and a warning is soon overlooked.
        if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
            raise PictureError(f"{width} x {height} pixels, beyond Pillow's safety limit (decompression bomb)")
        if target:
            image.draft("RGB", (target, target))  # JPEG only: decodes at 1/2, 1/4 or 1/8, never below the target
        image.load()
        file_format, image = image.format, _to_rgb(image)
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        if content.lstrip()[:1] == b"<":
            raise PictureError("a web page or other markup, not a picture") from error
        raise PictureError("no JPEG, PNG, GIF, WebP, BMP or TIFF picture") from error
    except Image.DecompressionBombError as error:
        raise PictureError("too many pixels, beyond Pillow's safety limit (decompression bomb)") from error
    except Exception as error:  # on broken bytes the decoders raise nearly anything
        raise PictureError(f"broken or truncated ({error or type(error).__name__})") from error
    with contextlib.suppress(Exception):  # a broken EXIF block is no reason to lose the picture
        image = ImageOps.exif_transpose(image)
    image.format = file_format
    return image


def _to_rgb(image: Any) -> Any:
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # Pillow's own conversion clips at 255, which turns nearly all of an X-ray white.
        values = np.asarray(image).astype(np.float32) / 257.0
        grey = Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))
        grey.info = image.info
        return grey.convert("RGB")
    if image.mode in ("I", "F"):
        raise PictureError("32-bit values have no agreed range: save it with 8 or 16 bits")
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        flat = Image.alpha_composite(white, image).convert("RGB")
        flat.info = {key: value for key, value in image.info.items() if key != "transparency"}
        return flat
    return image.convert("RGB")


def to_pixels(image: Any, image_size: int | None) -> np.ndarray:
    """Get uint8 (height, width, 3) of a Pillow image, stretched to a square where a size is given."""
    from PIL import Image

    return np.array(image.resize((image_size, image_size), Image.Resampling.BILINEAR) if image_size else image)


class PictureFile:
    """Decoded pictures in a nameless file, for when memory is short; threads may read and write at once.

    The file goes when the object goes, even after a kill. It is not mapped into memory: mapped pages would count as
    this process's until something else wants them.
    """

    def __init__(self, shape: tuple[int, int, int, int], whole: PictureFile | None = None):
        """Take (pictures, height, width, 3); `whole` is a file whose first pictures these are."""
        self.shape = shape
        self._file = whole._file if whole else tempfile.TemporaryFile(prefix="tlkeras-")
        self._lock = whole._lock if whole else threading.Lock()

    def __len__(self) -> int:
        """Get the number of pictures."""
        return self.shape[0]

    def __setitem__(self, number: int, picture: np.ndarray) -> None:
        """Put one picture, uint8 (height, width, 3), in its place."""
        content = np.ascontiguousarray(picture, np.uint8).tobytes()
        with self._lock:
            self._file.seek(number * len(content))
            self._file.write(content)

    def __getitem__(self, key: int | slice | np.ndarray) -> np.ndarray | PictureFile:
        """Get one picture, several by their numbers, or by `[:n]` the same file with fewer of them."""
        if isinstance(key, slice):
            if key.start or key.step:
                raise IndexError(f"A file of pictures can be cut at its end only, [:n], not {key}: pass numbers.")
            return PictureFile((len(range(len(self))[key]), *self.shape[1:]), self)
        if np.ndim(key):
            return np.stack([self[number] for number in key])
        picture = np.empty(self.shape[1:], np.uint8)
        with self._lock:
            self._file.seek(int(key) * picture.nbytes)
            self._file.readinto(picture)
        return picture


def reserve(num_pictures: int, image_size: int) -> tuple[np.ndarray | PictureFile | None, str]:
    """Get room for decoded pictures, with the bytes estimated first: in memory, else on disk, else none.

    Args:
        num_pictures: how many.
        image_size: side in pixels.

    Returns:
        uint8 (picture, height, width, 3), a `PictureFile` of them or None; and "memory", "disk" or "none".

    Raises:
        ValueError: when `image_size` is no side in pixels.
    """
    image_size = whole_number("image_size", image_size, 1)
    shape = (num_pictures, image_size, image_size, 3)
    num_bytes = math.prod(shape)
    if num_bytes <= min(MEMORY_LIMIT, MEMORY_SHARE * _available_memory()):
        kind = "memory"
    elif num_bytes <= DISK_SHARE * shutil.disk_usage(tempfile.gettempdir()).free:
        kind = "disk"
    else:
        kind = "none"
    logger.info("%.0f MiB of decoded pictures; cache: %s", num_bytes / 2**20, kind)
    if kind == "disk":
        return PictureFile(shape), kind
    return (np.empty(shape, np.uint8) if kind == "memory" else None), kind


def _available_memory() -> int:
    """Get the bytes of memory that are free now, the limit of a container included."""
    import psutil

    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no such file outside Linux; "max" where there is no limit
        kinds = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        # Files that were read count as used until somebody needs the room.
        used = int((CGROUP / "memory.current").read_text()) - int(kinds.get("inactive_file", 0))
        free = min(free, max(0, int((CGROUP / "memory.max").read_text()) - used))
    return free
