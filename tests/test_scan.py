"""Claims about looking at files: what is usable, what is set aside, and in which words."""

from __future__ import annotations

import io
import os
import shutil
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from tlkeras import scan as scanning
from tlkeras.scan import PictureError, decode_picture, scan_folder


def picture(seed: int, size=(48, 40)) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims any size and holds next to nothing."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(100)))
    body = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.fixture
def folder(tmp_path):
    for name, start in (("ants", 0), ("bees", 100)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(4):
            picture(start + number).save(tmp_path / "set" / name / f"{number}.png")
    return tmp_path / "set"


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


def test_forty_odd_files_are_each_used_or_named(folder):
    good, bad, ants = {}, {}, folder / "ants"
    rgb = picture(7)
    good["cmyk.jpg"] = encoded(rgb.convert("CMYK"), "JPEG")
    good["grey.jpg"] = encoded(rgb.convert("L"), "JPEG")
    good["progressive.jpg"] = encoded(rgb, "JPEG", progressive=True)
    good["palette.png"] = encoded(rgb.convert("P"), "PNG")
    good["alpha.png"] = encoded(rgb.convert("RGBA"), "PNG")
    good["grey_alpha.png"] = encoded(rgb.convert("LA"), "PNG")
    good["sixteen.png"] = encoded(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100), "PNG")
    good["one_bit.png"] = encoded(rgb.convert("1"), "PNG")
    good["rgb_transparent.png"] = encoded(rgb, "PNG", transparency=(0, 0, 0))
    good["still.gif"] = encoded(rgb, "GIF")
    good["moving.gif"] = encoded(rgb, "GIF", save_all=True, append_images=[picture(8)])
    good["still.webp"] = encoded(rgb, "WEBP")
    good["moving.webp"] = encoded(rgb, "WEBP", save_all=True, append_images=[picture(8)])
    good["lossless.webp"] = encoded(rgb.convert("RGBA"), "WEBP", lossless=True)
    good["map.bmp"] = encoded(rgb, "BMP")
    good["map8.bmp"] = encoded(rgb.convert("P"), "BMP")
    good["plain.tif"] = encoded(rgb, "TIFF")
    good["png_named.jpg"] = encoded(rgb, "PNG")
    good["jpeg_named.png"] = encoded(rgb, "JPEG")
    good["no_ending"] = encoded(rgb, "JPEG")
    good["tiny.png"] = encoded(Image.new("RGB", (1, 1)), "PNG")
    good["thin.png"] = encoded(Image.new("RGB", (900, 1)), "PNG")
    good["Ameisenbär 蚂蚁 🐜.png"] = encoded(rgb, "PNG")
    good["x" * 240 + ".png"] = encoded(rgb, "PNG")
    good["with space, comma;.png"] = encoded(rgb, "PNG")
    good["deeper/still deeper/inside.png"] = encoded(rgb, "PNG")
    bad["truncated.jpg"] = encoded(rgb, "JPEG")[:-300]
    bad["truncated.png"] = encoded(rgb, "PNG")[:-300]
    bad["truncated.webp"] = encoded(rgb, "WEBP")[:-100]
    bad["header_only.gif"] = encoded(rgb, "GIF")[:20]
    bad["zero.jpg"] = b""
    bad["page.jpg"] = b"<html><body>404 not found</body></html>"
    bad["vector.svg"] = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    bad["notes.txt"] = b"remember the milk"
    bad["labels.csv"] = b"a,b\n1,2\n"
    bad["archive.zip"] = b"PK\x03\x04" + bytes(100)
    bad["noise.jpg"] = np.random.default_rng(0).bytes(3000)
    bad["bomb.png"] = png_header(60_000, 60_000)
    bad["small_bomb.png"] = png_header(10_000, 12_000)
    bad["postscript.eps"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    bad["real.tif"] = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    for name, content in {**good, **bad}.items():
        (ants / name).parent.mkdir(parents=True, exist_ok=True)
        (ants / name).write_bytes(content)
    (ants / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    (ants / "itself.jpg").symlink_to(ants / "itself.jpg")
    (ants / "loop").symlink_to(folder)
    os.mkfifo(ants / "pipe.jpg")
    for name in (".DS_Store", "Thumbs.db", "._0.png"):
        (ants / name).write_bytes(b"furniture")
    (ants / ".ipynb_checkpoints").mkdir()
    (folder / "__MACOSX").mkdir()
    (folder / "SOURCE.md").write_text("where it came from")

    scan = scan_folder(folder, image_size=32)
    names = {item.path.removeprefix("ants/") for item in scan.set_aside}
    assert names == {*bad, "dangling.jpg", "itself.jpg", "loop/", "pipe.jpg", "SOURCE.md"}
    used = {item.path.removeprefix("ants/") for item in scan.pictures if item.class_name == "ants"}
    assert used == {*good, "0.png", "1.png", "2.png", "3.png"}
    assert all(item.reason and "\n" not in item.reason for item in scan.set_aside)
    assert "5 hidden or system files and folders ignored" in scan.notes
    for row, item in enumerate(scan.pictures):
        np.testing.assert_array_equal(scan.pixels[row], decode_picture(folder / item.path, 32), err_msg=item.path)


def test_given_splits_are_found_by_their_usual_names(folder, tmp_path):
    root = tmp_path / "given"
    for name in ("Train", "valid", "test"):
        shutil.copytree(folder, root / name)
    (root / "unlabelled").mkdir()
    scan = scan_folder(root, image_size=8)
    assert [item.split for item in scan.pictures].count("validation") == 8
    assert {item.split for item in scan.pictures} == {"train", "validation", "test"}
    assert scan.set_aside == (scanning.SetAside("unlabelled/", "a folder beside train/ that is no split; not read"),)


def test_a_class_may_be_called_train(folder):
    (folder / "ants").rename(folder / "train")
    scan = scan_folder(folder, image_size=8)
    assert scan.class_names == ("bees", "train") and {item.split for item in scan.pictures} == {None}


def test_a_class_that_only_validation_knows_is_set_aside(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "given" / "train")
    shutil.copytree(folder, tmp_path / "given" / "val")
    (tmp_path / "given" / "val" / "bees").rename(tmp_path / "given" / "val" / "wasps")
    scan = scan_folder(tmp_path / "given", image_size=8)
    assert scan.class_names == ("ants", "bees")
    assert [item.reason for item in scan.set_aside] == ["class 'wasps' has no picture in train/"] * 4


def test_an_empty_class_is_dropped_and_reported(folder):
    (folder / "wasps").mkdir()
    scan = scan_folder(folder, image_size=8)
    assert scan.class_names == ("ants", "bees")
    assert any("'wasps'" in note and "dropped" in note for note in scan.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.rmtree(root / "bees"), r"1 class folders .*'ants'.*two or more.*class_name/picture"),
        (lambda root: [shutil.rmtree(root / name) for name in ("ants", "bees")], "0 class folders"),
        (lambda root: shutil.rmtree(root), r"There is no folder.*holds"),
        (lambda root: (shutil.rmtree(root), root.write_text("x")), "is a file"),
        (lambda root: [(root / "ants").rename(root / "val"), (root / "bees").rename(root / "test")], "no train/"),
    ],
)
def test_a_folder_of_another_layout_is_refused_with_what_was_seen(folder, change, message):
    change(folder)
    with pytest.raises(ValueError, match=message):
        scan_folder(folder, image_size=8)


def test_one_folder_too_high_is_told_the_right_one(folder, tmp_path):
    with pytest.raises(ValueError, match="did you mean .*set'"):
        scan_folder(tmp_path, image_size=8)


def test_without_memory_the_cache_goes_to_disk_and_without_disk_nowhere(folder, monkeypatch):
    expected = scan_folder(folder, image_size=16).pixels
    monkeypatch.setattr(scanning, "MEMORY_SHARE", 0.0)
    on_disk = scan_folder(folder, image_size=16)
    assert on_disk.cache == "disk" and isinstance(on_disk.pixels, np.memmap)
    np.testing.assert_array_equal(on_disk.pixels, expected)
    monkeypatch.setattr(scanning, "DISK_SHARE", 0.0)
    nowhere = scan_folder(folder, image_size=16)
    assert nowhere.cache == "none" and nowhere.pixels is None and len(nowhere.pictures) == 8


def test_the_hash_of_appearance_does_not_depend_on_the_image_size(folder):
    picture(5, (900, 700)).save(folder / "ants" / "big.jpg")
    small, large = (scan_folder(folder, image_size=size).pictures for size in (16, 300))
    assert small == large
