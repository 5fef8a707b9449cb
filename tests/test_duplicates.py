"""Claims about duplicates: look-alikes are found, others are not, and what is joined stays joined."""

from __future__ import annotations

import tracemalloc

import numpy as np
from PIL import Image

from tlkeras.duplicates import appearance, encode, join, near_duplicates, sets


def test_near_duplicates_agree_with_the_comparison_of_all_pairs():
    generator = np.random.default_rng(0)
    bases = generator.integers(0, 2**63, 12)
    hashes, thumbnails = [], []
    for number in range(90):
        flips = sum(1 << int(bit) for bit in generator.choice(64, generator.integers(0, 6), replace=False))
        grey = bytes(generator.integers(100, 100 + generator.integers(1, 22), 192, dtype=np.uint8))
        hashes.append(int(bases[number % 12]) ^ flips)
        thumbnails.append(grey)
    parent = list(range(90))
    for one in range(90):
        for two in range(one):
            bits = (hashes[one] ^ hashes[two]).bit_count()
            levels = np.mean([abs(a - b) for a, b in zip(thumbnails[one], thumbnails[two], strict=True)])
            if bits <= 4 and levels <= 6:
                old, new = parent[one], parent[two]
                parent = [new if label == old else label for label in parent]
    codes = near_duplicates(hashes, thumbnails)
    assert 12 < len(set(parent)) < 80
    for one in range(90):
        for two in range(one):
            assert (codes[one] == codes[two]) == (parent[one] == parent[two])


def test_a_picture_saved_again_smaller_is_a_near_duplicate_and_another_is_not():
    looks = []
    for number in range(6):
        small = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((200, 160), Image.Resampling.BICUBIC)
        looks += [appearance(image), appearance(image.resize((100, 80)))]
    codes = near_duplicates(*zip(*looks, strict=True))
    assert (codes[::2] == codes[1::2]).all() and len(set(codes)) == 6


def test_thousands_that_look_alike_take_no_memory_by_the_pair():
    rng = np.random.default_rng(0)
    thumbnails = [rng.integers(0, 6, 192, np.uint8).tobytes() for _ in range(2000)]
    tracemalloc.start()
    codes = near_duplicates([7 ^ (1 << int(bit)) for bit in rng.integers(0, 64, 2000)], thumbnails)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(codes) == {0}
    assert peak < 40e6, "two million pairs of eight bytes, in each of five bands, would be 160 MB"


def test_what_any_code_joins_is_joined():
    codes = join(encode(["a", "b", "c", "a"]), encode(["x", "y", "y", "z"]))
    assert codes[0] == codes[3] != codes[1] == codes[2]
    assert len(set(join(encode(["a", "b", "c"]), encode(["x", "x", "y"]), encode(["p", "q", "q"])))) == 1


def test_sets_hold_only_what_is_not_alone():
    assert sets(["d", "c", "b", "a"], np.array([5, 2, 5, 7])) == (("d", "b"),)
