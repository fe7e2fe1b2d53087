"""Classify images with a file of ``sanet export``, by ONNX Runtime, NumPy and Pillow alone.

::

    pip install onnxruntime numpy pillow
    python onnx_runtime.py photos.onnx IMAGE [IMAGE ...]

The file holds the names of the classes and how images are preprocessed.
"""

import argparse
import json
import math

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

LISTED = 5  # classes of an image


def read(path: str, recipe: dict) -> Image.Image:
    """Return an image in the mode of the model, turned upright, with transparent pixels on white."""
    image = Image.open(path)
    if image.mode.startswith(("I", "F")):
        raise SystemExit(f"{path} has more than 8 bits per pixel; save it with 8")
    if not recipe["as_stored"]:
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba)
    return image.convert("RGB" if recipe["in_chans"] == 3 else "L")


def preprocess(image: Image.Image, recipe: dict) -> np.ndarray:
    """Resize the shorter side, crop the centre and normalise; return an array (channels, height, width)."""
    size = recipe["img_size"]
    shorter = math.floor(size / recipe["crop_pct"])
    width, height = (
        shorter if side == min(image.size) else int(shorter * side / min(image.size)) for side in image.size
    )
    image = image.resize((width, height), Image.Resampling[recipe["interpolation"].upper()])
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    pixels = np.asarray(image, np.float32).reshape(size, size, recipe["in_chans"]) / 255
    return ((pixels - np.float32(recipe["mean"])) / np.float32(recipe["std"])).transpose(2, 0, 1)


def main() -> None:
    """Print the most probable classes of each image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="file of sanet export --format onnx")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    args = parser.parse_args()
    session = onnxruntime.InferenceSession(args.model)
    about = json.loads(session.get_modelmeta().custom_metadata_map["shuffle_attention"])
    names = about["classes"] or [f"class {number}" for number in range(about["num_classes"])]
    (input_,) = session.get_inputs()
    for path in args.images:
        batch = preprocess(read(path, about["recipe"]), about["recipe"])[None]
        (logits,) = session.run(None, {input_.name: batch})[0]
        powers = np.exp(logits - logits.max())
        probabilities = powers / powers.sum()
        for number in np.argsort(-probabilities)[:LISTED]:
            print(f"{path}\t{names[number]}\t{probabilities[number]:.6f}")


if __name__ == "__main__":
    main()
