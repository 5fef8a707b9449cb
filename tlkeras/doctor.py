"""The doctor: what is installed, which devices and weights are in reach."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

import keras


def examine() -> Iterator[tuple[str, str, str | None]]:
    """Look at the machine: rows of (what, finding, advice or None)."""
    import importlib.metadata as metadata

    from tlkeras import __version__
    from tlkeras.catalogue import CATALOGUE
    from tlkeras.startup import list_devices
    from tlkeras.weights import EMBEDDED_FILE, cache_folder, weights_in_reach

    yield "tlkeras", __version__, None
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", None
    yield "keras", f"{keras.__version__}, backend {keras.backend.backend()}", None
    for package in ("tensorflow", "openvino", "tensorflow-datasets", "scikit-learn", "pillow", "matplotlib"):
        try:
            yield package, metadata.version(package), None
        except metadata.PackageNotFoundError:
            yield package, "missing", f"pip install {package}"
    devices = [device for device in list_devices() if not device.startswith("cpu")]
    advice = None if devices else "fine for this course; on Colab choose Runtime > Change runtime type > GPU"
    yield "devices", ", ".join(devices) or f"CPU only, {os.cpu_count()} cores", advice
    home = cache_folder()
    try:
        home.mkdir(parents=True, exist_ok=True)
        writable = os.access(home, os.W_OK)
    except OSError:
        writable = False
    yield "weights are kept in", str(home), None if writable else f"make {home} writable or set KERAS_HOME"
    embedded = EMBEDDED_FILE.is_file()
    yield (
        "embedded weights",
        "MobileNetV2 0.35" if embedded else "missing",
        None if embedded else "install tlkeras anew",
    )
    cached = [
        name if alpha is None else f"{name} {alpha}"
        for name, entry in CATALOGUE.items()
        for alpha in entry.alphas or (None,)
        if weights_in_reach(name, alpha)
    ]
    advice = None if cached else "downloaded at first use; offline, auto takes the embedded weights"
    yield "ImageNet weights here", ", ".join(cached) or "none", advice
