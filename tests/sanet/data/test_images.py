"""Images as they are found in the wild."""

import subprocess

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from shuffle_attention.sanet.data.images import Finding, find_images, inspect_image, read_image, to_mode


def picture(size: int = 48) -> Image.Image:
    grid = np.indices((size, size)).sum(0) * 255 // (2 * size)
    return Image.fromarray(np.stack([grid, grid[::-1], grid[:, ::-1]], -1).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_rgb_or_grey(tmp_path, mode):
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    picture().convert(mode).save(path)
    assert read_image(path, "RGB").mode == "RGB"
    assert read_image(path, "L").mode == "L"


def test_transparent_palettes_raise_no_warning(tmp_path):
    image = picture().convert("P")
    image.save(tmp_path / "image.png", transparency=bytes(range(256)))
    assert read_image(tmp_path / "image.png", "RGB").mode == "RGB"


def test_16_bit_pixels_are_scaled_and_not_clipped_to_white(tmp_path):
    pixels = (np.arange(256, dtype=np.uint16).reshape(16, 16)) * 257
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    grey = np.asarray(read_image(tmp_path / "deep.png", "L"))
    assert (grey.ravel() == np.arange(256)).all()
    assert inspect_image(tmp_path / "deep.png", "RGB") == Finding(converted="16-bit")


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
    picture().save(path, kind)
    assert inspect_image(path, "RGB").fault == ""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert inspect_image(path, "RGB").fault


def test_a_jpeg_with_something_after_its_end_is_whole(tmp_path):
    picture().save(tmp_path / "image.jpg")
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
    picture().convert(mode).save(tmp_path / "image.jpg")
    assert inspect_image(tmp_path / "image.jpg", wanted) == Finding(converted=converted)


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
