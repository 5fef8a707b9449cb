"""The embedded world: pictures without limit, made offline.

A fractal class is one iterated function system, a handful of affine maps (Kataoka et al. 2020,
"Pre-training without Natural Images", https://arxiv.org/abs/2101.08515). Systems are drawn as Anderson
and Farrell do (2022, "Improving Fractal Pre-training", https://arxiv.org/abs/2110.03091), by their
singular values, so that hardly any draw is a dot or a blur. A picture of a class varies in pose, palette,
background and, slightly, in the maps themselves: colour says nothing about the class, shape does.

The embedded backbone has seen systems of family 0 and photographs, so fractals of any other family are a
*near* target. The *far* target is `make_digits`: real handwriting (scikit-learn's digits) on clutter.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from tlkeras.arguments import whole_number

_CHAINS, _SETTLE, _STEPS = 1500, 8, 32  # points followed at once; steps thrown away; steps drawn


@dataclass(frozen=True)
class System:
    """An iterated function system: `x -> matrices[k] @ x + offsets[k]`, map k taken with `probabilities[k]`."""

    matrices: np.ndarray  # (maps, 2, 2), every singular value below 1
    offsets: np.ndarray  # (maps, 2)
    probabilities: np.ndarray  # (maps,), sums to 1, proportional to |det| of each map


def sample_system(rng: np.random.Generator) -> System:
    """Draw an iterated function system of 2 to 4 contracting maps.

    The singular values satisfy Anderson and Farrell's condition (their section 4.1) that the sum over the
    maps of `s1 + 2 s2` lies in [(5 + N) / 2, (6 + N) / 2]; systems inside that band fill a good part of the
    plane without blurring.
    """
    while True:
        num_maps = int(rng.integers(2, 5))
        target = rng.uniform(0.5 * (5 + num_maps), 0.5 * (6 + num_maps))
        singular = np.sort(rng.uniform(0.0, 1.0, size=(num_maps, 2)), axis=1)[:, ::-1]
        singular = singular * target / (singular[:, 0] + 2 * singular[:, 1]).sum()
        if singular.max() >= 0.98:
            continue
        first, second = (_rotations(rng.uniform(0, 2 * np.pi, num_maps)) for _ in range(2))
        flips = rng.choice([-1.0, 1.0], size=(num_maps, 1, 2))
        matrices = (first * (singular[:, None, :] * flips)) @ second
        determinants = np.abs(np.linalg.det(matrices)) + 0.01
        system = System(matrices, rng.uniform(-1, 1, (num_maps, 2)), determinants / determinants.sum())
        if _coverage(_points(system, rng)[0].T) > 0.12:
            return system


def render(system: System, image_size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one picture of a system: uint8, (image_size, image_size, 3), range [0, 255]."""
    paint, cover = _paint(system, image_size, rng)
    return (background(image_size, rng) * (1 - cover) + paint * cover).astype(np.uint8)


def _paint(system: System, image_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One drawing of a system: colours, (image_size, image_size, 3), and how far they cover, (..., 1) in [0, 1]."""
    jitter = System(
        system.matrices * rng.uniform(0.94, 1.0, (len(system.matrices), 1, 1)),
        system.offsets + rng.normal(0, 0.04, system.offsets.shape),
        system.probabilities,
    )
    (x, y), which = _points(jitter, rng)
    rotation = _rotations(rng.uniform(-0.6, 0.6, 1))[0]
    points = np.stack([x * rotation[0, k] + y * rotation[1, k] for k in range(2)])
    if rng.random() < 0.5:
        points[0] *= -1
    low, high = np.quantile(points, [0.01, 0.99], axis=1)[..., None]
    points = (points - (low + high) / 2) / max((high - low).max(), 1e-6)  # now within [-0.5, 0.5]
    centre = rng.uniform(0.42, 0.58, 2)
    pixels = ((points * rng.uniform(0.65, 1.0) + centre[:, None]) * image_size).astype(np.int64)
    inside = ((pixels >= 0) & (pixels < image_size)).all(axis=0)
    flat = pixels[1, inside] * image_size + pixels[0, inside]
    num_pixels = image_size * image_size
    palette = rng.uniform(0, 255, (len(system.matrices), 3))
    by_map = np.bincount(which[inside] * num_pixels + flat, minlength=len(palette) * num_pixels)
    by_map = by_map.reshape(len(palette), num_pixels).astype(np.float64)
    count = by_map.sum(axis=0)
    paint = (by_map.T @ palette) / np.maximum(count, 1)[:, None]
    cover = np.clip(count / max(np.quantile(count[count > 0], 0.7), 1.0), 0, 1)[:, None] ** 0.6
    return paint.reshape(image_size, image_size, 3), cover.reshape(image_size, image_size, 1)


def background(image_size: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth coloured noise, float64, (image_size, image_size, 3), range [0, 255]."""
    cells = int(rng.integers(2, 7))
    grid = rng.uniform(0, 255, (1, 1, 3)) + rng.uniform(-90, 90, (cells, cells, 3))
    # Bilinear enlargement as two matrix products: weights (image_size, cells).
    position = np.linspace(0, cells - 1, image_size)
    weights = np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(cells)[None, :]))
    smooth = np.einsum("yi,xj,ijc->yxc", weights, weights, grid, optimize=True)
    return np.clip(smooth + rng.normal(0, rng.uniform(2, 18), (image_size, image_size, 1)), 0, 255)


def make_fractals(
    num_classes: int, per_class: int, *, image_size: int = 96, family: int = 1, first_picture: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Make labelled pictures of fractals, the same on every machine for the same arguments.

    Args:
        num_classes: Systems, numbered from 0 within the family.
        per_class: Pictures of each.
        image_size: Height and width in pixels.
        family: Which universe of systems. Family 0 trained the embedded backbone; any other is unseen by it.
        first_picture: Number of the first picture of each class; pass a later one for more of the same classes.

    Returns:
        Images, uint8, (num_classes * per_class, image_size, image_size, 3), range [0, 255], class by class,
        and labels, int64, (num_classes * per_class,).

    Examples:
    >>> images, labels = make_fractals(2, 3, image_size=32)
    >>> images.shape, images.dtype, labels.tolist()
    ((6, 32, 32, 3), dtype('uint8'), [0, 0, 0, 1, 1, 1])
    """
    _check_counts(num_classes=num_classes, per_class=per_class, image_size=image_size)
    systems = [sample_system(np.random.default_rng([family, label])) for label in range(num_classes)]
    images = np.empty((num_classes * per_class, image_size, image_size, 3), np.uint8)

    def draw(number: int) -> None:
        label, k = divmod(number, per_class)
        rng = np.random.default_rng([family, label, first_picture + k, 1])
        images[number] = render(systems[label], image_size, rng)

    with ThreadPoolExecutor(2) as pool:  # numpy works outside Python's lock; of four threads some would wait for it
        list(pool.map(draw, range(len(images))))
    return images, np.repeat(np.arange(num_classes), per_class)


def make_scenes(
    num_pictures: int,
    num_classes: int = 3,
    *,
    image_size: int = 96,
    most: int = 3,
    family: int = 1,
    first_picture: int = 0,
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Make pictures of one to `most` fractals in places of their own, with a box around each: something to detect.

    Args:
        num_pictures: How many pictures.
        num_classes: Systems, numbered from 0 within the family.
        image_size: Height and width in pixels, 32 or more; a fractal is drawn on 35 to 55 % of the side.
        most: Fractals in a picture, at most; one that finds no free place is left out.
        family: As in `make_fractals`.
        first_picture: Number of the first picture; pass a later one for more of the same kind.

    Returns:
        Images, uint8, (num_pictures, image_size, image_size, 3), range [0, 255]; for each picture boxes, float32,
        (objects, 4): left, top, right, bottom in pixels; and for each its labels, int64, (objects,).

    Raises:
        ValueError: If a number is below 1, or image_size below 32.

    Examples:
    >>> images, boxes, labels = make_scenes(2, image_size=48)
    >>> images.shape, boxes[0].shape[1]
    ((2, 48, 48, 3), 4)
    """
    _check_counts(num_pictures=num_pictures, num_classes=num_classes, image_size=image_size, most=most)
    if image_size < 32:
        raise ValueError(f"Fractals in a scene are told apart from 32 pixels a side, got image_size={image_size}.")
    systems = [sample_system(np.random.default_rng([family, label])) for label in range(num_classes)]
    images, boxes, labels = [], [], []
    for k in range(num_pictures):
        rng = np.random.default_rng([family, first_picture + k, 2])
        picture, found, names = background(image_size, rng), [], []
        for label in rng.integers(num_classes, size=rng.integers(1, most + 1)):
            side = int(image_size * rng.uniform(0.35, 0.55))
            paint, cover = _paint(systems[label], side, rng)
            rows, columns = (np.flatnonzero((cover[..., 0] > 0.3).any(axis=axis)) for axis in (1, 0))
            for left, top in rng.integers(0, image_size - side + 1, (20, 2)):
                box = left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1
                if all(box[0] >= x2 or box[2] <= x1 or box[1] >= y2 or box[3] <= y1 for x1, y1, x2, y2 in found):
                    window = picture[top : top + side, left : left + side]
                    window[:] = window * (1 - cover) + paint * cover
                    found.append(box)
                    names.append(label)
                    break
        images.append(picture.astype(np.uint8))
        boxes.append(np.array(found, np.float32))
        labels.append(np.array(names, np.int64))
    return np.stack(images), boxes, labels


def make_digits(per_class: int, *, image_size: int = 96, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Make a real far domain: scikit-learn's handwritten digits, placed, scaled and coloured on clutter.

    On the plain 8 × 8 digits raw pixels reach 94 %, so they can teach nothing about features. Here the digit
    covers 35 to 75 % of the picture's side, anywhere, over strokes cut from other digits. Every picture uses
    a different handwritten original until the set's 174 to 183 a class are used up.

    Args:
        per_class: Pictures of each of the ten digits, at most 174.
        image_size: Height and width in pixels.
        seed: Order of the originals and every random choice.

    Returns:
        Images, uint8, (10 * per_class, image_size, image_size, 3), range [0, 255], class by class, and
        labels, int64. The first n pictures of a class are the same whatever `per_class` is.
    """
    from sklearn.datasets import load_digits

    _check_counts(per_class=per_class, image_size=image_size)
    if per_class > 174:
        raise ValueError(f"scikit-learn has 174 originals of the rarest digit; per_class={per_class} asks for more.")
    source = load_digits()
    glyphs = (source.images / 16.0).astype(np.float64)
    images = np.empty((10, per_class, image_size, image_size, 3), np.uint8)
    for digit in range(10):
        originals = np.random.default_rng([seed, digit]).permutation(np.flatnonzero(source.target == digit))
        for k in range(per_class):
            rng = np.random.default_rng([seed, digit, k])
            picture = background(image_size, rng)
            for _ in range(int(rng.integers(2, 6))):  # clutter: fragments, too small to be read as digits
                fragment = glyphs[rng.integers(len(glyphs))][2:6, 2:6]
                _stamp(picture, fragment, rng.uniform(0.08, 0.2), rng)
            _stamp(picture, glyphs[originals[k]], rng.uniform(0.35, 0.75), rng)
            images[digit, k] = picture.astype(np.uint8)
    return images.reshape(-1, image_size, image_size, 3), np.repeat(np.arange(10), per_class)


def _rotations(angles: np.ndarray) -> np.ndarray:
    """(n,) angles in radians -> (n, 2, 2) rotation matrices."""
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def _points(system: System, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The chaos game on many points at once: (2, points) positions and the map that led to each."""
    # As `rng.choice(..., p=...)` draws, which looks each number up in the sums.
    sums = np.cumsum(system.probabilities)
    drawn = rng.random((_SETTLE + _STEPS, _CHAINS))
    which = sum((drawn >= bound).astype(np.int64) for bound in sums[:-1] / sums[-1])
    numbers = np.concatenate([system.matrices.reshape(-1, 4), system.offsets], axis=1)  # (maps, a b c d e f)
    chosen = numbers.T[:, which]  # (6, steps, chains)
    x, y = np.zeros(_CHAINS), np.zeros(_CHAINS)
    points = np.empty((2, _STEPS, _CHAINS))
    for step in range(_SETTLE + _STEPS):
        a, b, c, d, e, f = chosen[:, step]
        x, y = a * x + b * y + e, c * x + d * y + f
        if step >= _SETTLE:
            points[:, step - _SETTLE] = x, y
    return points.reshape(2, -1), which[_SETTLE:].ravel()


def _coverage(points: np.ndarray) -> float:
    """Share of a 24 × 24 grid over the attractor's box that holds a point."""
    low, high = np.quantile(points, [0.01, 0.99], axis=0)
    cells = np.clip((points - low) / max((high - low).max(), 1e-6) * 24, 0, 23).astype(int)
    return len(np.unique(cells[:, 0] * 24 + cells[:, 1])) / 24**2


def _stamp(picture: np.ndarray, glyph: np.ndarray, share: float, rng: np.random.Generator) -> None:
    """Paint a grey glyph in [0, 1] into a float picture, in place, at a random spot and colour."""
    size = picture.shape[0]
    side = max(4, int(size * share))
    position = np.linspace(0, len(glyph) - 1, side)
    weights = np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(len(glyph))[None, :]))
    alpha = np.clip((weights @ glyph @ weights.T) * 1.3, 0, 1)[..., None]
    top, left = rng.integers(0, size - side + 1, 2)
    window = picture[top : top + side, left : left + side]
    # A colour at least 80 levels away from what lies under it, so that the digit can be seen.
    under = window.mean(axis=(0, 1))
    colour = np.clip(under + rng.choice([-1, 1]) * rng.uniform(80, 160, 3) * np.sign(rng.normal(0.7, 1, 3)), 0, 255)
    window[:] = window * (1 - alpha) + colour * alpha


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        whole_number(name, value, 1)
