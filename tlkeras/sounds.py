"""Sound from pictures: what a thing sounds like when it is struck tells what it is, and nobody has to write it down.

After Owens et al. 2016, "Ambient Sound Provides Supervision for Visual Learning", https://arxiv.org/abs/1608.07017:
sounds are summed up by their statistics, the summaries are clustered, and a network predicts the cluster from the
picture. The embedded world has struck objects, whose sound is synthesised from what is seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tlkeras.arguments import whole_number
from tlkeras.fractals import background
from tlkeras.pretexts import Classes

RATE = 8000  # samples a second
SAMPLES = 4000
MATERIALS = ("metal", "glass", "wood", "rubber")
SHAPES = ("bar", "disc", "ring")
# Loss factors: the share of a vibration's energy that is lost in each radian, chosen so that an ear tells the materials
# apart. The pitch is that of a thing as large as the picture, in Hz.
_LOSS = {"metal": 0.001, "glass": 0.004, "wood": 0.02, "rubber": 0.15}
_PITCH = {"metal": 330.0, "glass": 390.0, "wood": 240.0, "rubber": 90.0}
# Frequencies over the lowest: a free bar's go as the squares of 3.011, 5, 7, 9; a free disc's; a ring's as
# n (n^2 - 1) / sqrt(n^2 + 1).
_MODES = {"bar": (1.0, 2.756, 5.404, 8.933), "disc": (1.0, 1.73, 2.33, 3.91), "ring": (1.0, 2.828, 5.423, 8.771)}


@dataclass
class Sound(Classes):
    """Which of the clusters of sounds belongs to the picture.

    Attributes:
        sounds: One a picture, (pictures, samples), any unit.
        rate: Samples a second.
        num_clusters: Of k-means on the summaries, at most as many as sounds. The paper has 30.
    """

    sounds: np.ndarray = field(repr=False)
    rate: int = RATE
    num_clusters: int = 30

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Sum up the sounds and cluster the summaries; the number of a cluster is a picture's target."""
        from sklearn.cluster import KMeans
        from sklearn.preprocessing import StandardScaler

        if len(self.sounds) != len(images):
            raise ValueError(f"{len(images)} pictures need as many sounds, got {len(self.sounds)}.")
        if not 2 <= self.num_clusters <= len(images):
            raise ValueError(
                f"num_clusters must lie between 2 and the number of sounds, {len(images)}; got {self.num_clusters}."
            )
        summaries = StandardScaler().fit_transform(sound_summary(self.sounds, self.rate))
        self.num_classes = self.num_clusters
        return KMeans(self.num_clusters, random_state=0).fit_predict(summaries).astype("int32")


def sound_summary(sounds: np.ndarray, rate: int = RATE, num_bands: int = 20) -> np.ndarray:
    """Get statistics of sounds that leave out when what happened, after McDermott and Simoncelli (2011).

    The envelopes of bands evenly spaced over the logarithm of frequency are compressed as the ear does (power 0.3);
    kept are each band's mean, its deviation, and the shares of slow, middle and fast changes in its energy.

    Args:
        sounds: (sounds, samples), at least 256 samples each.
        rate: Samples a second.
        num_bands: From 100 Hz to half of the rate.

    Returns:
        float32 (sounds, 5 * num_bands).
    """
    from scipy.signal import stft

    sounds = np.atleast_2d(np.asarray(sounds, "float32"))
    if sounds.ndim != 2:
        raise ValueError(
            f"Sounds are (sounds, samples), of one channel, got {sounds.shape}: take the mean over the channels."
        )
    if sounds.shape[1] < 256 or not np.isfinite(sounds).all():
        raise ValueError(f"Sounds are (sounds, samples) of 256 finite samples or more, got {sounds.shape}.")
    frequencies, _, spectrum = stft(sounds, rate, nperseg=256, noverlap=128)  # (sounds, frequencies, moments)
    edges = np.geomspace(100, rate / 2, num_bands + 1)
    centres = np.sqrt(edges[1:] * edges[:-1])
    # Triangles over log frequency, at least as wide as the spectrum is fine, so that no band is empty.
    width = np.maximum(np.log(edges[1] / edges[0]), 1.5 * frequencies[1] / centres)[:, None]
    distance = np.abs(np.log(np.maximum(frequencies, 1) / centres[:, None]))
    bands = np.maximum(0, 1 - distance / width)
    envelopes = (bands.astype("float32") @ np.abs(spectrum) ** 2) ** 0.15  # a power of 0.3 of the amplitude
    mean, deviation = envelopes.mean(axis=2), envelopes.std(axis=2)
    changes = np.abs(np.fft.rfft(envelopes - mean[..., None], axis=2)) ** 2
    thirds = np.array_split(changes[..., 1:], [2, 6], axis=2)
    total = changes.sum(axis=2) + 1e-9
    parts = [mean, deviation, *(third.sum(axis=2) / total for third in thirds)]
    return np.concatenate(parts, axis=1).astype("float32")


@dataclass(frozen=True)
class StruckObjects:
    """Things that were struck.

    Attributes:
        images: uint8 (things, image_size, image_size, 3) in [0, 255].
        sounds: float32 (things, 4000), half a second at 8000 samples a second.
        materials: Which of `MATERIALS`, (things,).
        shapes: Which of `SHAPES`, (things,).
    """

    images: np.ndarray
    sounds: np.ndarray
    materials: np.ndarray
    shapes: np.ndarray


def make_struck_objects(count: int, *, image_size: int = 96, seed: int = 0) -> StruckObjects:
    """Make pictures of things with the sound that each gives when struck: the same on every machine.

    What is seen decides the sound: the material how long it rings, the shape which frequencies, the size how high. A
    material is seen by its surface (metal shines, glass lets the background through, wood has a grain, rubber is dull),
    little by its colour, whose hue is drawn at random.

    Args:
        count: Number of things.
        image_size: Height and width in pixels.
        seed: Of all that is random; another seed gives other things.

    Example:
    >>> things = make_struck_objects(5, image_size=32)
    >>> things.images.shape, things.sounds.shape
    ((5, 32, 32, 3), (5, 4000))
    """
    count, image_size = whole_number("count", count, 1), whole_number("image_size", image_size, 8)
    images, sounds = np.empty((count, image_size, image_size, 3), np.uint8), np.empty((count, SAMPLES), np.float32)
    materials, shapes = np.empty(count, np.int64), np.empty(count, np.int64)
    for k in range(count):
        rng = np.random.default_rng([seed, k, 7])
        materials[k], shapes[k] = rng.integers(len(MATERIALS)), rng.integers(len(SHAPES))
        size = rng.uniform(0.45, 0.9)
        images[k] = _draw(MATERIALS[materials[k]], SHAPES[shapes[k]], size, image_size, rng)
        sounds[k] = _strike(MATERIALS[materials[k]], SHAPES[shapes[k]], size, rng)
    return StruckObjects(images, sounds, materials, shapes)


def _strike(material: str, shape: str, size: float, rng: np.random.Generator) -> np.ndarray:
    """Add up damped vibrations, (SAMPLES,): each mode dies out after as many periods as the material's loss says."""
    time = np.arange(SAMPLES) / RATE
    frequencies = _PITCH[material] / size * np.array(_MODES[shape]) * rng.normal(1, 0.01, 4)
    heights = rng.uniform(0.3, 1, 4) / (1 + np.arange(4))  # where it was struck
    heights[frequencies > 0.45 * RATE] = 0
    decay = np.pi * _LOSS[material] * rng.uniform(0.8, 1.25) * frequencies
    waves = np.exp(-np.outer(decay, time)) * np.sin(2 * np.pi * np.outer(frequencies, time))
    return (heights @ waves + rng.normal(0, 0.003, SAMPLES)).astype("float32")


def _draw(material: str, shape: str, size: float, image_size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one thing on a background, uint8 (image_size, image_size, 3)."""
    back = background(image_size, rng)
    angle, centre = rng.uniform(0, np.pi), rng.uniform(0.42, 0.58, 2)
    grid = (np.arange(image_size) + 0.5) / image_size
    y, x = np.meshgrid(grid - centre[0], grid - centre[1], indexing="ij")
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    half = size / 2
    if shape == "bar":
        depth = np.minimum(half - np.abs(along), 0.3 * half - np.abs(across))  # from the edge inwards
    else:
        depth = half - np.hypot(x, y)
        depth = np.minimum(depth, 0.45 * half - depth) if shape == "ring" else depth
    cover = np.clip(depth * image_size + 0.5, 0, 1)[..., None]
    colour = rng.uniform(60, 200, 3)
    paint = np.broadcast_to(colour, back.shape).copy()
    if material == "metal":
        shine = np.cos(np.pi * (across / half + rng.uniform(-0.5, 0.5))) ** 8
        paint = 0.6 * paint + 150 * shine[..., None]
    elif material == "wood":
        grain = np.sin(2 * np.pi * (across * 9 + 0.4 * np.sin(6 * along + rng.uniform(0, 6))) / half / 2)
        paint = paint * (1 + 0.3 * grain[..., None])
    elif material == "glass":
        rim = np.exp(-np.maximum(depth, 0) * 25)[..., None]
        paint = 0.75 * back + 0.15 * paint + 90 * rim
    else:
        paint = 0.45 * paint + rng.normal(0, 4, (image_size, image_size, 1))
    return np.clip(back * (1 - cover) + paint * cover, 0, 255).astype(np.uint8)
