"""Save a backbone for others: its weights, what they must know about it, and proof that it still answers as it did."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlkeras.artifact import replace_folder
from tlkeras.backbones import Backbone, load_backbone
from tlkeras.card import GOLDEN, refuse_foreign, write_card
from tlkeras.catalogue import CATALOGUE
from tlkeras.fractals import make_fractals
from tlkeras.freezing import transfer_of
from tlkeras.modelcard import DTYPES, FILES, FORMAT, NUM_GOLDEN, README, WEIGHTS, golden_features, make_model_card


def save_backbone(
    folder: str | os.PathLike,
    source: Backbone | keras.Model,
    *,
    about: Mapping[str, Any],
    examples: np.ndarray | None = None,
    dtype: str = "float32",
) -> Path:
    """Get a folder that holds a backbone and what others need to use it, to judge it and to know it again.

    `load_backbone(weights=folder)` opens it, `publish_backbone` puts it where others get it. The folder appears whole,
    after it was loaded once for a check, or not at all; a saved backbone that was there is replaced. Pictures that it
    learnt from are not in it, but weights remember some of what they saw: publish none that were trained on pictures
    that you may not show.

    Args:
        folder: Where to; its parents are made.
        source: From `load_backbone`, perhaps trained by you; or a model of `build_classifier`, after `fine_tune` say,
            whose backbone is taken without the head.
        about: "description", "data" (what it was trained on) and "licence" are needed, "title", "method", "limits" and
            "metrics" (a dictionary, of accuracies with their intervals) welcome.
        examples: Eight pictures (8, height, width, 3) in [0, 255] whose features prove on loading that the net is the
            same; they lie readable in the folder. Default: fractals, which anybody may see.
        dtype: "float32", or "float16" for half the size; the weights are rounded, and `metrics` measured before may
            no longer hold to the last digit.

    Returns:
        The folder.

    Raises:
        ValueError: If the net is not of the catalogue, or `about`, `examples` or `dtype` is not as said.
        FileExistsError: If `folder` is anything but a saved backbone or empty, or the current folder.
        ArtifactError: If what was saved does not load or answers differently; NaN weights, for one.
    """
    folder = Path(folder).expanduser()
    refuse_foreign(folder, FILES, "A saved backbone", FORMAT)
    backbone = source if isinstance(source, Backbone) else _backbone_of(source)
    if backbone.name not in CATALOGUE or backbone.stages != CATALOGUE[backbone.name].stages:
        raise ValueError(
            f"{backbone.name!r} is not one of list_backbones(): who loads it could not build it without its code. A "
            "net of KerasHub is shared by its own save_to_preset()."
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    model = backbone.model
    net = {
        "name": backbone.name,
        "alpha": backbone.alpha,
        "image_size": backbone.image_size,
        "channels": model.input_shape[-1],
        "stages": list(backbone.stages),
        "num_features": backbone.num_features,
        "num_weights": model.count_params(),
        # A path would tell strangers how this machine's folders are named.
        "started_from": backbone.weights
        if re.match(r"(imagenet|embedded|random|pretrained by \w+)$|https?://|hf://", backbone.weights)
        else "a file",
    }
    card = make_model_card(net, about, dtype)
    pictures = _golden_pictures(examples, model.input_shape[1:])
    weights = [np.asarray(keras.ops.convert_to_numpy(variable)) for variable in model.weights]
    with np.errstate(over="ignore"):
        stored = [array.astype(dtype) for array in weights]
    if any(np.isfinite(a).all() and not np.isfinite(b).all() for a, b in zip(weights, stored, strict=True)):
        raise ValueError("Some weights are too large for float16: take dtype='float32'.")

    draft = folder.absolute().with_name(f".{folder.absolute().name}.{uuid.uuid4().hex[:8]}")
    try:
        draft.mkdir(parents=True)
        np.savez_compressed(draft / WEIGHTS, **{f"{k:05d}": np.ascontiguousarray(a) for k, a in enumerate(stored)})
        (draft / README).write_text(_readme(card), encoding="utf-8")
        with _in_float32():
            features = _features_of(net, stored, pictures)
            np.savez_compressed(draft / GOLDEN, pictures=pictures, features=features)
            write_card(draft, card)
            load_backbone(weights=draft)
        replace_folder(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _backbone_of(model: keras.Model) -> Backbone:
    """The backbone of a classifier, with the weights that it has there."""
    transfer = transfer_of(model)
    if transfer.backbone not in CATALOGUE or transfer.stages != CATALOGUE[transfer.backbone].stages:
        raise ValueError(
            f"Of {transfer.backbone} this model holds {len(transfer.stages)} stages, and only a whole backbone of the "
            "catalogue can be saved, as in a classifier built without `stage`; a detector holds less of it."
        )
    options = {"alpha": transfer.alpha, "channels": model.input_shape[-1]}
    backbone = load_backbone(transfer.backbone, weights=None, image_size=transfer.image_size, **options)
    for layer in backbone.model.layers:
        if layer.weights:
            layer.set_weights(model.get_layer(layer.name).get_weights())
    return Backbone(**{**vars(backbone), "weights": transfer.weights})


def _golden_pictures(examples: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    if examples is None:
        pictures, _ = make_fractals(NUM_GOLDEN, 1, image_size=shape[0])
        return pictures[..., : shape[-1]]
    pictures = np.asarray(examples)
    if pictures.shape != (NUM_GOLDEN, *shape):
        raise ValueError(f"examples must be {NUM_GOLDEN} pictures {shape}, got an array of shape {pictures.shape}.")
    raw = pictures.dtype.kind in "iu" or pictures.max() > 1.5  # whole numbers may be dark, fractions were divided
    if not (np.isfinite(pictures).all() and pictures.min() >= 0 and pictures.max() <= 255 and raw):
        raise ValueError(
            f"Pixels must be raw, in [0, 255], got {pictures.min():g} to {pictures.max():g}: the net does the "
            "preprocessing itself."
        )
    return np.rint(pictures).astype(np.uint8)


@contextlib.contextmanager
def _in_float32() -> Iterator[None]:
    """Nets are built to compute in float32 here: golden features of half the precision would prove little."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _features_of(net: Mapping[str, Any], stored: list, pictures: np.ndarray) -> np.ndarray:
    """The golden features by the weights as they are stored, of a net of its own."""
    options = {key: net[key] for key in ("image_size", "alpha", "channels")}
    model = load_backbone(net["name"], weights=None, **options).model
    model.set_weights([array.astype("float32") for array in stored])
    return golden_features(model, pictures)


def _readme(card: Mapping[str, Any]) -> str:
    """The card for people; its head is what the Hugging Face Hub reads."""
    net, about = card["net"], card["about"]
    width = "" if net["alpha"] is None else f", alpha {net['alpha']}"
    licence = about["licence"].strip()
    known = licence.lower().replace(" ", "-")
    name = known if known in ("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0") else "other"
    head = ["---", f"license: {name}", "library_name: keras", "pipeline_tag: image-feature-extraction", "---", ""]
    parts = [
        f"# {about['title']}",
        about["description"],
        f"Network: {net['name']}{width}, without its top: {net['num_weights']:,} weights as {card['dtype']}, made at"
        f" {net['image_size']} px for {card['preprocessing']['channels']} pictures in [0, 255], preprocessing inside."
        f" Started from: {net['started_from']}.",
        f"## Data\n\n{about['data']}",
        f"## Method\n\n{about.get('method', 'Not said.')}",
        "## Metrics\n\n" + _list_metrics(about.get("metrics", {})),
        f"## Limits\n\n{about.get('limits', 'Not said.')}",
        f"## Licence\n\n{licence}",
        '## Use\n\n    import tlkeras as tl\n\n    backbone = tl.load_backbone(weights="THIS FOLDER OR ITS ADDRESS")',
        "Loading checks the SHA-256 of each file and the features of eight pictures. The checksums lie beside the"
        " files, so they show damage, not fraud: compare the SHA-256 of `card.json` with one that the owner told you"
        " elsewhere.",
    ]
    return "\n".join(head) + "\n\n".join(parts) + "\n"


def _list_metrics(metrics: Mapping[str, Any]) -> str:
    return "\n".join(f"- {key}: {json.dumps(value)}" for key, value in metrics.items()) or "None were told."
