"""Image files as cameras, scanners and strangers write them."""

import os
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageCms

from shuffle_attention.errors import DataError
from shuffle_attention.sanet.data.image_files import find_images
from shuffle_attention.sanet.data.images import Finding, check_images, inspect_image, read_image, to_mode


def pattern(size: int = 48) -> Image.Image:
    grid = np.indices((size, size)).sum(0) * 255 // (2 * size)
    return Image.fromarray(np.stack([grid, grid[::-1], grid[:, ::-1]], -1).astype(np.uint8))


COLOUR = (200, 30, 60)
SRGB, CIELAB = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))


def plain(mode: str) -> Image.Image:
    """Return an image of one colour, which is as close to COLOUR as the mode allows."""
    image = Image.new("RGB", (8, 6), COLOUR)
    if mode == "LAB":
        return ImageCms.profileToProfile(image, SRGB, CIELAB, outputMode="LAB")
    return image.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode)).convert(mode)


@pytest.mark.parametrize("mode", "RGB RGBA RGBX RGBa CMYK YCbCr HSV LAB P PA L LA La 1".split())
def test_every_mode_becomes_rgb_and_grey(mode):
    grey = 84
    wanted = COLOUR if mode not in ("L", "LA", "La", "1") else (grey,) * 3
    tolerance = {"P": 30, "PA": 30, "1": 84}.get(mode, 3)
    pixel = to_mode(plain(mode), "RGB").getpixel((0, 0))
    assert np.abs(np.subtract(pixel, wanted)).max() <= tolerance
    assert abs(to_mode(plain(mode), "L").getpixel((0, 0)) - grey) <= tolerance


@pytest.mark.parametrize(
    ("mode", "name", "tolerance"), [("CMYK", "a.jpg", 3), ("CMYK", "a.tif", 0), ("LAB", "a.tif", 3)]
)
def test_inks_and_lab_survive_a_file(tmp_path, mode, name, tolerance):
    """Adobe's CMYK JPEG files hold inverted inks."""
    plain(mode).save(tmp_path / name)
    pixel = read_image(tmp_path / name, "RGB").getpixel((0, 0))
    assert np.abs(np.subtract(pixel, COLOUR)).max() <= tolerance
    assert inspect_image(tmp_path / name, "RGB") == Finding(converted=mode)


def half_transparent(mode: str) -> Image.Image:
    """Return an image whose left half is transparent; a palette or a key colour makes all of it transparent."""
    image = plain("RGB").convert(mode)
    if mode in ("RGBA", "LA"):
        alpha = Image.new("L", image.size, 255)
        alpha.paste(0, (0, 0, 4, 6))
        image.putalpha(alpha)
    return image


@pytest.mark.parametrize(("mode", "key"), [("RGBA", None), ("LA", None), ("P", 0), ("RGB", COLOUR), ("L", 84)])
def test_transparent_pixels_are_laid_on_white(tmp_path, mode, key):
    image = half_transparent(mode)
    if mode == "P":
        key = bytes(256)  # every colour of the palette is transparent
    image.save(tmp_path / "a.png", **({} if key is None else {"transparency": key}))
    read = read_image(tmp_path / "a.png", "RGB")
    assert read.getpixel((0, 0)) == (255, 255, 255)
    assert key is not None or read.getpixel((7, 0)) == image.convert("RGB").getpixel((7, 0))
    assert read_image(tmp_path / "a.png", "RGB", as_stored=True).getpixel((0, 0)) != (255, 255, 255)
    assert "laid on white" in inspect_image(tmp_path / "a.png", "RGB").converted


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.mpo"])
@pytest.mark.parametrize("orientation", range(10))
def test_images_are_turned_upright(tmp_path, name, orientation):
    """The corners of a displayed image tell how it was stored: EXIF's table of rows and columns."""
    upright = np.zeros((24, 48), np.uint8)
    upright[:12, :24] = 255
    stored = {
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }.get(orientation, upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / name, exif=exif)
    assert np.abs(np.asarray(read_image(tmp_path / name, "L"), int) - upright).mean() < 8
    finding = inspect_image(tmp_path / name, "L")
    assert finding.size == (48, 24)
    if name != "a.tif":  # Pillow turns TIFF files itself
        turned = orientation in range(2, 9)
        assert (finding.converted, finding.orientation) == (
            "turned upright by EXIF data" * turned,
            orientation * turned or 1,
        )
        assert read_image(tmp_path / name, "L", as_stored=True).size == stored.shape[::-1]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_exif_data_behind_the_pixels_of_a_png_file_count(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (9, 5)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + content[-12:])
    assert read_image(tmp_path / "a.png", "L").size == inspect_image(tmp_path / "a.png", "L").size == (5, 9)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*garbage", b"Exif\0\0\xff\xff", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_damaged_exif_data_do_not_spoil_the_pixels(tmp_path, exif):
    pattern().save(tmp_path / "a.jpg", exif=exif)
    assert inspect_image(tmp_path / "a.jpg", "RGB") == Finding()
    assert read_image(tmp_path / "a.jpg", "RGB").size == (48, 48)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_of_several_frames_the_first_is_read_and_counted(tmp_path, name):
    pattern().save(tmp_path / name, save_all=True, append_images=[Image.new("RGB", (48, 48))])
    assert "several frames" in inspect_image(tmp_path / name, "RGB").converted
    assert np.asarray(read_image(tmp_path / name, "RGB")).max() > 200


def test_16_bit_pixels_are_scaled_and_not_clipped_to_white(tmp_path):
    pixels = (np.arange(256, dtype=np.uint16).reshape(16, 16)) * 257
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    grey = np.asarray(read_image(tmp_path / "deep.png", "L"))
    assert (grey.ravel() == np.arange(256)).all()
    assert inspect_image(tmp_path / "deep.png", "RGB") == Finding(converted="16-bit")


def write_colour(path: Path, pixels: np.ndarray) -> None:
    """Write colours of 16 bits, (H, W, 3), as PNG; Pillow cannot."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "colour.png"])
def test_a_sensor_of_12_bits_in_16_is_not_read_as_black(tmp_path, name):
    """A microscope's images fill 12 of 16 bits: the check refuses a conversion that leaves nothing of them."""
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    if name == "colour.png":
        write_colour(tmp_path / name, np.stack([ramp] * 3, -1))
    else:
        Image.fromarray(ramp).save(tmp_path / name)
    advice = "save them with 8 bits" if name == "colour.png" else "give --bit-depth 12; "
    with pytest.raises(DataError, match=f"almost black.* {advice}.* --bit-depth 16"):
        check_images([tmp_path / name], "RGB")
    assert check_images([tmp_path / name], "RGB", bit_depth=16) == [0]
    if name != "colour.png":
        pixels = np.asarray(read_image(tmp_path / name, "L", bit_depth=12))
        assert (pixels.ravel() == np.arange(4096) >> 4).all()
        with pytest.raises(ValueError, match="exceed the 11 bits"):
            read_image(tmp_path / name, "L", bit_depth=11)


def test_16_bit_colours_keep_their_upper_byte(tmp_path):
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    write_colour(tmp_path / "a.png", np.stack([ramp, ramp.T, ramp], -1))
    assert (np.asarray(read_image(tmp_path / "a.png", "RGB"))[..., 0].ravel() == np.arange(256)).all()
    assert check_images([tmp_path / "a.png"], "RGB") == [0]
    assert inspect_image(tmp_path / "a.png", "RGB") == Finding(converted="16-bit")


def test_pixels_without_an_agreed_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match="32-bit float pixels"):
        to_mode(Image.fromarray(np.ones((4, 4), np.float32)), "RGB")
    with pytest.raises(ValueError, match="32-bit integer pixels"):
        to_mode(Image.fromarray(np.full((4, 4), 1 << 20, np.int32)), "RGB")
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tiff")
    assert "32-bit float" in inspect_image(tmp_path / "float.tiff", "RGB").fault


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_whole_files_are_found_whole_and_cut_ones_cut(tmp_path, kind):
    path = tmp_path / f"image.{kind.lower()}"
    pattern().save(path, kind)
    assert inspect_image(path, "RGB").fault == ""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert inspect_image(path, "RGB").fault


def test_a_jpeg_with_something_after_its_end_is_whole(tmp_path):
    pattern().save(tmp_path / "image.jpg")
    with open(tmp_path / "image.jpg", "ab") as file:
        file.write(b"camera notes" * 20)
    assert inspect_image(tmp_path / "image.jpg", "RGB") == Finding()


@pytest.mark.parametrize(("content", "fault"), [(b"", "empty file"), (b"hello", "not an image")])
def test_what_is_no_image_says_why(tmp_path, content, fault):
    (tmp_path / "image.jpg").write_bytes(content)
    assert inspect_image(tmp_path / "image.jpg", "RGB") == Finding(fault=fault)


@pytest.mark.parametrize(
    ("mode", "wanted", "converted"),
    [("RGB", "RGB", ""), ("L", "RGB", "greyscale"), ("L", "L", ""), ("CMYK", "RGB", "CMYK")],
)
def test_what_an_image_is_converted_from_is_told(tmp_path, mode, wanted, converted):
    pattern().convert(mode).save(tmp_path / "image.jpg")
    assert inspect_image(tmp_path / "image.jpg", wanted) == Finding(converted=converted)


def test_what_would_hang_or_fill_the_memory_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    Image.new("1", (3_000_000, 1)).save(tmp_path / "line.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to("loop.png")
    huge = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b""))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + huge + chunk(b"IEND", b""))
    faults = {path.stem: inspect_image(path, "RGB").fault for path in tmp_path.iterdir()}
    assert faults.pop("line") == "3,000,000 x 1 pixels; one side may be at most 200 times the other: crop it"
    assert "more than 178,956,970 pixels" in faults.pop("bomb")
    assert "symbolic links" in faults.pop("loop")
    assert set(faults.values()) == {"not a regular file"}
    for name in ("pipe.png", "line.png", "endless.png"):
        with pytest.raises((OSError, ValueError)):
            read_image(tmp_path / name, "RGB")


def test_a_postscript_file_named_png_starts_no_program(tmp_path, monkeypatch):
    """Pillow decodes EPS with Ghostscript; ``gs_binary`` is what it found, whatever is installed here."""
    started = []
    monkeypatch.setattr(subprocess, "check_call", lambda *arguments, **options: started.append(arguments))
    path = tmp_path / "evil.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    with Image.open(path) as image:
        assert image.format == "EPS"
        with pytest.raises(OSError, match="Ghostscript"):  # as data sets of timm and torchvision open it
            image.load()
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    for whole in (False, True):
        assert inspect_image(path, "RGB", whole=whole) == Finding(fault="not an image")
    with pytest.raises(OSError, match="cannot identify"):
        read_image(path, "RGB")
    with pytest.raises(ValueError, match=r"evil.png \(not an image\)"):
        find_images([path])
    assert not started
