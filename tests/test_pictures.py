"""Claims about the one decoder: what it makes of every kind of picture, and in which words it refuses the rest."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import encoded, picture, png_header
from PIL import Image

from tlkeras import pictures
from tlkeras.pictures import PictureError, PictureFile, decode_picture, reserve


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert decode_picture(encoded(Image.fromarray(values), "PNG"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparent_pixels_become_white():
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    assert decode_picture(encoded(rgba, "PNG")).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    half = Image.new("LA", (1, 1), (0, 128))
    assert decode_picture(encoded(half, "PNG"))[0, 0, 0] == pytest.approx(127, abs=1)


def test_a_palette_with_a_transparent_entry_becomes_white_there():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert decode_picture(encoded(image, "PNG", transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_the_rotation_written_by_a_camera_is_applied():
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise: the left half comes to lie on top
    turned = decode_picture(encoded(image, "JPEG", exif=exif, quality=95))
    assert turned.shape == (40, 20, 3)
    assert turned[:18].min() > 200 and turned[22:].max() < 50


def test_a_broken_exif_block_does_not_lose_the_picture():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode_picture(encoded(picture(0), "JPEG", exif=b"Exif\x00\x00MM\x00garbage"), 8).shape == (8, 8, 3)


def test_cmyk_is_read_as_the_same_colours():
    assert np.abs(decode_picture(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")) - [255, 0, 0]).max() < 6


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame_counts(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(decode_picture(content).astype(int) - [255, 0, 0]).max() < 6


def test_content_counts_and_not_the_ending(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(picture(1), "PNG"))
    np.testing.assert_array_equal(decode_picture(tmp_path / "a.jpg"), np.asarray(picture(1)))


def test_reduced_jpeg_decoding_stays_near_the_full_one():
    image = picture(3, (1600, 1200))
    content = encoded(image, "JPEG", quality=95)
    full = np.asarray(image.resize((100, 100), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(decode_picture(content, 100) - full).mean() < 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<!doctype html><title>404</title>", "web page"),
        (b"just a note", "no JPEG, PNG"),
        (encoded(picture(0), "JPEG")[:400], "broken or truncated"),
        (encoded(picture(0), "PNG")[:-200], "broken or truncated"),
        (png_header(10_000, 12_000), "decompression bomb"),  # Pillow only warns here
        (png_header(60_000, 60_000), "decompression bomb"),
        (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "32-bit"),
    ],
)
def test_what_is_no_usable_picture_raises_one_error_with_a_short_reason(content, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(PictureError, match=reason) as caught:
            decode_picture(content, 16)
    assert len(caught.value.reason) < 150


def test_the_error_for_a_path_names_it(tmp_path):
    with pytest.raises(PictureError, match=r"gone\.jpg: cannot be read"):
        decode_picture(tmp_path / "gone.jpg")


def test_a_file_of_pictures_is_read_and_written_by_many_threads():
    expected = np.random.default_rng(0).integers(0, 256, (200, 20, 20, 3), dtype=np.uint8)
    kept = PictureFile(expected.shape)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: kept.__setitem__(number, expected[number]), range(200)))
        found = list(pool.map(lambda number: kept[number], range(200)))
    np.testing.assert_array_equal(found, expected)
    fewer = kept[:150]
    assert len(fewer) == 150 and fewer.shape == (150, 20, 20, 3)
    np.testing.assert_array_equal(fewer[np.array([149, 3, 3])], expected[[149, 3, 3]])
    with pytest.raises(IndexError, match="cut at its end only"):
        kept[50:100]


def test_pictures_beyond_the_limit_go_to_a_file_however_much_memory_is_free(monkeypatch):
    monkeypatch.setattr(pictures, "MEMORY_LIMIT", 10 * 8 * 8 * 3)
    monkeypatch.setattr(pictures, "_available_memory", lambda: 10**9)
    assert reserve(10, 8)[1] == "memory"
    assert reserve(11, 8)[1] == "disk"


def test_files_that_a_container_has_read_leave_its_memory_free(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "CGROUP", tmp_path)
    for name, text in {"max": "5000\n", "current": "4000\n", "stat": "anon 900\ninactive_file 3000\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert pictures._available_memory() == 4000
    (tmp_path / "memory.max").write_text("max\n")
    assert pictures._available_memory() > 10**6
