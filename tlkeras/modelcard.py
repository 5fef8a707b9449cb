"""The card of a saved backbone, and its files: read as if a stranger had written them.

A folder holds `card.json`, `weights.npz`, `golden.npz` and `README.md`. Nothing in it is code: the graph is built from
the catalogue by its name, and the files hold plain arrays whose number, shapes and types are known before they are
read. What the card claims is checked before it is believed: a net that exists, sizes within limits, files that lie in
the folder itself and have their hashes, finite weights, and pictures that get the features they once got.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlkeras.card import CARD, GOLDEN, ArtifactError, check_files, open_card, versions
from tlkeras.catalogue import CATALOGUE
from tlkeras.engines import compute_precision

WEIGHTS, README = "weights.npz", "README.md"
FILES = (WEIGHTS, GOLDEN, README)
FORMAT = "tlkeras backbone 1"
DTYPES = ("float32", "float16")
NUM_GOLDEN, MAX_SIZE, MAX_ALPHA = 8, 1024, 4.0
NEEDED = {"description": "what it is and what it is for", "data": "what it was trained on", "licence": "such as MIT"}
OPTIONAL = {"title": "of the card", "method": "how it was trained", "limits": "what it is not for", "metrics": "a dict"}

# Of the distance between a picture's features and its golden ones, as a share of the length of these. Measured on
# MobileNetV2 (alpha 0.35, ImageNet and embedded weights) and MobileNet (0.25), the most of eight pictures: weights
# rounded to float16, or all computed in float16, hence about TF32 on GPUs too (not measured): 0.03 at most; bfloat16
# 0.21; a first layer 1 % too large 0.02, 50 % too large 0.23 and more; swapped colours 0.37 and more. A few changed
# weights are for the hash. The largest move of one channel would be no measure: float16 moves some by 0.2 of the root
# mean square.
TOLERANCE, TOLERANCE_HALF_PRECISION = 5e-2, 0.3


def make_model_card(net: dict[str, Any], about: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Get the card of a backbone, its files not yet listed.

    Args:
        net: name, alpha, image_size, channels, stages, num_features, num_weights, made_from.
        about: What the owner says of it; as in `save_backbone`.
        dtype: Of the stored weights.

    Raises:
        ValueError: If something needed is not said, something unknown is, or it is no JSON.
    """
    known = NEEDED | OPTIONAL
    if unknown := sorted(set(about) - set(known)):
        raise ValueError(f"about has no entry {unknown[0]!r}; it has {', '.join(known)}.")
    for key, meaning in NEEDED.items():
        if not isinstance(about.get(key), str) or not about[key].strip():
            raise ValueError(f"about[{key!r}] must say in words {meaning}; say 'unknown' where nobody knows.")
    if wrong := [key for key in ("title", "method", "limits") if not isinstance(about.get(key, ""), str)]:
        raise ValueError(f"about[{wrong[0]!r}] must be a text.")
    if not isinstance(about.get("metrics", {}), Mapping):
        raise ValueError("about['metrics'] must be a dictionary, such as {'flowers, accuracy': 0.63}.")
    card = {
        "format": FORMAT,
        "net": net,
        "about": {"title": f"{net['name']}, {net['image_size']} px", **about},
        "preprocessing": {"channels": "RGB" if net["channels"] == 3 else "grey", "range": [0, 255]},
        "dtype": dtype,
        "tolerance": TOLERANCE,
        "versions": versions(),
    }
    try:
        return json.loads(json.dumps(card, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"about must hold plain numbers, texts, lists and dictionaries: {error}.") from error


def read_model_card(folder: Path) -> dict[str, Any]:
    """Get the card of a saved backbone whose files are all there and as they were.

    Names that begin with a dot are left alone, such as `.git`; they are never opened.

    Args:
        folder: Written by `save_backbone`.

    Returns:
        What `card.json` says: "net", "about", "dtype", "versions", "files" and the rest.

    Raises:
        ArtifactError: If there is no card, it says what cannot be, or a file is missing, changed, a link or too many.
    """
    folder = Path(folder)
    path = folder / CARD
    if path.is_symlink():
        raise ArtifactError(f"{path} is a link. A saved backbone holds files only: copy it with what it points to.")
    card = parse_model_card(open_card(folder, FORMAT, "saved backbone", "save_backbone()"), path)
    for file in folder.iterdir():
        if not file.name.startswith(".") and file.name not in (CARD, *FILES):
            raise ArtifactError(f"{folder} holds {file.name!r}, which its card does not list: take it away.")
        if file.is_symlink() and file.name in FILES:
            raise ArtifactError(f"{file} is a link. A saved backbone holds files only: copy what it points to.")
        if file.name in FILES and file.stat().st_size > max_bytes(card, file.name):
            raise ArtifactError(f"{file} has {file.stat().st_size:,} bytes, more than such a net can have.")
    check_files(folder, card["files"], required=FILES)
    return card


def parse_model_card(card: dict[str, Any], path: Path | str) -> dict[str, Any]:
    """Get a card back if all that it says can be; asks no other file.

    Raises:
        ArtifactError: If an entry is missing, of another kind, or beyond its limits; `path` and the entry are named.
    """

    def wrong(what: str) -> ArtifactError:
        return ArtifactError(f"{path}: {what}")

    kinds = {"net": dict, "about": dict, "versions": dict, "files": dict, "tolerance": float, "dtype": str}
    for name, kind in kinds.items():
        if not isinstance(card.get(name), kind):
            raise wrong(f"{name!r} is missing or of another kind than save_backbone() writes.")
    net, files = card["net"], card["files"]
    entry = CATALOGUE.get(net.get("name")) if isinstance(net.get("name"), str) else None
    if entry is None:
        raise wrong(f"there is no net {net.get('name')!r} in this version of tlkeras; list_backbones() names them.")
    if net.get("stages") != list(entry.stages):
        raise wrong(f"its stages are not those of {entry.name} here ({', '.join(entry.stages)}): another version?")
    alpha = net.get("alpha")
    if not (alpha is None if not entry.alphas else _is_number(alpha, float, 0.01, MAX_ALPHA)):
        raise wrong(f"alpha is {alpha!r}; {entry.name} {f'takes up to {MAX_ALPHA}' if entry.alphas else 'has none'}.")
    for key, least, most in (
        ("image_size", entry.min_size, MAX_SIZE), ("num_features", 1, 10**5), ("num_weights", 1, 10**9),
    ):  # fmt: skip
        if not _is_number(net.get(key), int, least, most):
            raise wrong(f"{key} must be a whole number from {least} to {most}, not {net.get(key)!r}.")
    width = entry.widths.get(alpha or 1.0)
    if width is not None and width.num_weights != net["num_weights"]:
        raise wrong(f"{entry.title(alpha or 1.0)} has {width.num_weights:,} weights, not {net['num_weights']!r}.")
    if net.get("channels") not in (1, 3) or isinstance(net["channels"], bool | float):
        raise wrong(f"channels must be 3 or 1, not {net.get('channels')!r}.")
    if not 0 < card["tolerance"] <= TOLERANCE:  # a wide tolerance would let any net through
        raise wrong(f"tolerance must lie in (0, {TOLERANCE}], not {card['tolerance']!r}.")
    if card["dtype"] not in DTYPES:
        raise wrong(f"dtype must be one of {', '.join(DTYPES)}, not {card['dtype']!r}.")
    # Known names only: a card must not make us open "../../elsewhere".
    if odd := sorted(set(files) ^ set(FILES)):
        raise wrong(f"it must list {', '.join(FILES)} and no other file; look at {odd[0]!r}.")
    if not all(isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) for digest in files.values()):
        raise wrong("a file has no SHA-256.")
    return card


def max_bytes(card: Mapping[str, Any], name: str) -> int:
    """Get how large a file of the folder can be if its card tells the truth; what is larger need not be fetched."""
    net = card["net"]
    golden = NUM_GOLDEN * (net["image_size"] ** 2 * net["channels"] + 4 * net["num_features"])
    return 1_000_000 + {WEIGHTS: 5 * net["num_weights"], GOLDEN: 2 * golden}.get(name, 0)


def fill_from_folder(build: Callable[[int, int], keras.Model], folder: Path, card: Mapping[str, Any]) -> keras.Model:
    """Get a net with the weights of a folder, after it has given the golden features.

    Args:
        build: From image size and channels to the net with random weights.
        folder: Whose card was read by `read_model_card`.
        card: What that gave.

    Raises:
        ArtifactError: If the weights do not fit or are not finite, or a golden picture gets other features.
    """
    net, path = card["net"], folder / WEIGHTS
    model = build(net["image_size"], net["channels"])
    if model.count_params() != net["num_weights"]:
        raise ArtifactError(f"{folder}: its card says {net['num_weights']} weights, {model.count_params()} are needed.")
    if model.output_shape[-1] != net["num_features"]:
        raise ArtifactError(
            f"{folder / CARD} says num_features {net['num_features']}, but the net has {model.output_shape[-1]}."
        )
    wanted = {f"{k:05d}": (tuple(v.shape), card["dtype"]) for k, v in enumerate(model.weights)}
    weights = [array.astype("float32") for array in read_arrays(path, wanted).values()]
    if spoilt := sum(not np.isfinite(array).all() for array in weights):
        raise ArtifactError(f"{path} holds NaN or infinity in {spoilt} of {len(weights)} arrays.")
    model.set_weights(weights)
    sides = (net["image_size"], net["image_size"], net["channels"])
    arrays = read_arrays(
        folder / GOLDEN,
        {
            "pictures": ((NUM_GOLDEN, *sides), "uint8"),
            "features": ((NUM_GOLDEN, net["num_features"]), "float32"),
        },
    )
    half = compute_precision(model) != "float32"  # under a mixed-precision policy
    allowed = TOLERANCE_HALF_PRECISION if half else card["tolerance"]
    gaps = feature_gaps(golden_features(model, arrays["pictures"]), arrays["features"])
    failed = np.flatnonzero(~(gaps <= allowed))  # so that NaN fails
    if len(failed):
        raise ArtifactError(
            f"{folder}: the net no longer answers as when it was saved. Golden picture"
            f" {', '.join(map(str, failed))} of {NUM_GOLDEN} (from 0) is off by up to {gaps[failed].max():.2g} of the"
            f" length of its features; {allowed:g} is allowed."
            f" Saved with {card['versions']}; here {versions()}."
        )
    return model


def golden_features(model: keras.Model, pictures: np.ndarray) -> np.ndarray:
    """Get the features of uint8 pictures, averaged over height and width, float32 (pictures, channels)."""
    # Not `predict_on_batch`: it would compile each net for eight pictures, and TensorFlow warn of it.
    maps = keras.ops.convert_to_numpy(model(keras.ops.convert_to_tensor(pictures, "float32"), training=False))
    return np.asarray(maps, "float32").mean(axis=(1, 2))


def feature_gaps(features: np.ndarray, golden: np.ndarray) -> np.ndarray:
    """Get each picture's distance from its golden features, as a share of their length."""
    length = np.linalg.norm(golden.astype("float64"), axis=1)
    return np.linalg.norm(features.astype("float64") - golden, axis=1) / np.maximum(length, 1e-12)


def read_arrays(path: Path, wanted: Mapping[str, tuple[Sequence[int], str]]) -> dict[str, np.ndarray]:
    """Get the arrays of an .npz file if they are exactly those wanted; others are refused before memory is taken.

    Args:
        path: The file.
        wanted: For each name its shape and dtype.

    Raises:
        ArtifactError: If an array is missing, too many, of another shape or dtype, pickled, or cannot be read.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            held = [info.filename for info in archive.infolist()]
            if sorted(held) != sorted(f"{name}.npy" for name in wanted):
                raise ValueError(f"it holds {len(held)} arrays, other than the {len(wanted)} that belong here")
            if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in archive.infolist()):
                raise ValueError("it is packed in a way that np.savez does not use")
            for name, (shape, dtype) in wanted.items():
                with archive.open(f"{name}.npy") as file:
                    arrays[name] = _read_array(file, name, tuple(shape), np.dtype(dtype))
    except Exception as error:  # what a damaged or hostile archive raises is not documented
        raise ArtifactError(f"{path} is not what its card says: {error}.") from error
    return arrays


def _read_array(file: Any, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    version = np.lib.format.read_magic(file)
    if version != (1, 0):  # np.savez writes no other here; later ones announce headers of gigabytes
        raise ValueError(f"array {name} is of format {version}")
    held, in_columns, kind = np.lib.format.read_array_header_1_0(file)
    if held != shape or kind != dtype or in_columns:  # an array of objects, which only pickle can read, ends here too
        raise ValueError(f"array {name} is {kind} {held}; wanted is {dtype} {shape}, row by row")
    data = file.read(math.prod(shape) * dtype.itemsize + 1)  # a byte more than there may be, never a bomb's billions
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"array {name} is cut off or goes on behind its end")
    return np.frombuffer(data, dtype).reshape(shape)


def _is_number(value: Any, kind: type, least: float, most: float) -> bool:
    kinds = (int, float) if kind is float else int
    return isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= most
