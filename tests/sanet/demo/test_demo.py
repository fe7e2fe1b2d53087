"""What the page of ``sanet demo`` computes and refuses; ``test_demo_browser.py`` drives it in a browser."""

import asyncio
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from conftest import CPU, sanet_here
from pages import write_classifier, write_detector
from shuffle_attention.errors import DataError, InputError
from shuffle_attention.sanet.commands.demo import is_finished, train_digits
from shuffle_attention.sanet.demo import uploads as incoming
from shuffle_attention.sanet.demo.predictors import (
    CaptionedImage,
    Network,
    Request,
    Result,
    examples_for,
    kinds_of,
    open_networks,
)
from shuffle_attention.sanet.demo.security import OwnOriginOnly, UploadsOnly
from shuffle_attention.sanet.demo.uploads import read_upload
from shuffle_attention.sanet.recipes.recipe import load_recipe
from shuffle_attention.sanet.report.html import render_part

torchcam = pytest.mark.skipif(sys.version_info < (3, 11), reason="torchcam needs Python 3.11")


def saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def test_an_upload_is_upright_rgb_and_no_larger_than_needed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, as a phone held upright writes it
    photo = Image.new("L", (3000, 1000), 10)
    photo.paste(200, (0, 0, 1500, 1000))
    read = read_upload(saved(photo, tmp_path / "photo.jpg", exif=exif))
    assert (read.mode, read.size) == ("RGB", (683, 2048))
    assert read.getpixel((300, 100)) == (200, 200, 200)
    assert read.getpixel((300, 1900)) == (10, 10, 10)


def test_16_bits_are_scaled(tmp_path):
    deep = Image.fromarray(np.full((4, 4), 128 << 8, np.uint16))
    assert read_upload(saved(deep, tmp_path / "deep.png")).getpixel((0, 0)) == (128, 128, 128)


# Pillow warns above 89 million pixels, which in a server is a line of its log, and here would be an error.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((10_000, 10_000), "10,000 x 10,000 pixels, 100 million, and 50 million are allowed"),
        ((20_000, 20_000), "far more than 50,000,000 pixels"),
        ((30_000, 100), "at most 20 times the other"),
    ],
)
def test_too_many_pixels_are_refused_from_the_header(tmp_path, monkeypatch, size, said):
    path = saved(Image.new("1", size), tmp_path / "black.png")
    assert path.stat().st_size < 100_000

    def load(*_):
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(DataError, match=said):
        read_upload(path)


def test_too_many_bytes_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("the file was opened"))
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(incoming.MAX_BYTES + 1)
    with pytest.raises(DataError, match=r"20\.0 MB are allowed"):
        read_upload(path)


def test_what_is_no_image_is_said_to_be_none(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image at all")
    (tmp_path / "drawing.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    whole = saved(noise, tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    floats = Image.fromarray(np.zeros((4, 4), np.float32))
    saved(floats, tmp_path / "floats.tiff")
    for name, said in {
        "empty.png": "is an empty file",
        "text.png": "is not an image that can be read; JPEG, PNG",
        "drawing.png": "is not an image that can be read",
        "cut.png": "cannot be read",
        "floats.tiff": "32-bit float pixels",
    }.items():
        with pytest.raises(DataError, match=f"{name} .*{said}"):
            read_upload(tmp_path / name)


@pytest.fixture(scope="module")
def networks(run, tmp_path_factory) -> list[Network]:
    detector = write_detector(tmp_path_factory.mktemp("detector") / "best.pt")
    return open_networks([run / "best.pt", run / "last.pt", detector], CPU)


@pytest.fixture(scope="module")
def digit(shared_tree) -> Image.Image:
    return read_upload(shared_tree / "val/digit2/000.png")


def hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def test_networks_are_told_apart(networks, run, tmp_path):
    first, second, detector = (network.label for network in networks)
    assert (first, second) == (f"sa_resnet18 ({run / 'best.pt'})", f"sa_resnet18 ({run / 'last.pt'})")
    assert detector == "faster_rcnn-sa_resnet18"
    assert [network.kind for network in networks] == ["classifier", "classifier", "detector"]
    with pytest.raises(InputError, match="there is no checkpoint"):
        open_networks([tmp_path / "none.pt"], CPU)


@torchcam
def test_a_classifier_shows_its_classes_and_where_the_evidence_is(networks, digit):
    network = networks[0]
    before = hooks(network.model)
    look = network.look(digit, Request(target="digit3", layer="stage1", method="layercam"))
    with torch.no_grad():
        shares = network.model(network.predictor.inputs(digit))[0].softmax(0)
    assert [name for name, _ in look.best] == [network.classes[index] for index in shares.argsort(descending=True)]
    assert [share for _, share in look.best] == pytest.approx(sorted(shares.tolist(), reverse=True), abs=1e-6)
    saw, drawn = look.images
    assert saw.image.size == drawn.image.size == (32, 32)
    assert np.array_equal(np.asarray(saw.image), np.asarray(digit))
    assert drawn.is_map
    assert not np.array_equal(np.asarray(saw.image), np.asarray(drawn.image))
    assert drawn.caption == f"evidence for digit3 ({100 * shares[3]:.1f} %) at layer1, 8 x 8"
    assert (look.fault, hooks(network.model)) == ("", before)


@torchcam
def test_the_layer_that_is_shown_by_default_shows_places(networks, digit):
    """At 32 pixels the last stage has one place, and the second has 4 x 4."""
    assert networks[0].look(digit, Request()).images[-1].caption.endswith("at layer2, 4 x 4")
    assert networks[0].look(digit, Request(method="group")).images[-1].caption.endswith("at layer2.1.sa, 4 x 4")
    last = networks[0].look(digit, Request(layer="stage4"))
    assert last.notes
    assert not last.images[-1].is_map


@pytest.mark.parametrize(
    ("wish", "said"),
    [(Request(target="digit7"), "no class 'digit7'"), (Request(layer="layer9"), "no layer of SAResNet 'layer9'")],
)
def test_what_cannot_be_shown_leaves_the_rest(networks, digit, wish, said):
    look = networks[0].look(digit, wish)
    assert said in look.fault
    assert (len(look.best), len(look.images)) == (4, 1)


def test_a_detector_shows_what_it_finds_of_the_score_that_is_asked_for(networks):
    ((photo, _), *_) = examples_for({"detector"})
    every, none = (networks[2].look(photo, Request(threshold=threshold)) for threshold in (0.0, 1.0))
    assert len(every.best) > 0
    assert {name for name, _ in every.best} <= set(map(str, range(10)))
    assert every.images[0].caption.startswith(f"{len(every.best)} object")
    assert (none.best, none.images[0].caption) == ([], "0 objects with a score of at least 1.00")
    assert not np.array_equal(np.asarray(every.images[0].image), np.asarray(none.images[0].image))


def test_gates_are_drawn_where_there_are_some(networks, digit, tmp_path):
    for network in (networks[0], networks[2]):
        before = hooks(network.model)
        images = network.gates(digit)
        assert [image.image.width > 400 for image in images] == [True, True]
        assert hooks(network.model) == before
    (plain,) = open_networks([write_classifier(tmp_path / "plain.pt")], CPU)
    assert plain.gates(digit) == []
    assert kinds_of([plain]) == {"classifier"}


@torchcam
def test_visitors_at_once_see_what_each_would_see_alone(networks, digit):
    """Maps put hooks on the modules of a network, which is one for all."""
    wishes = [
        Request(layer=f"stage{stage}", method=method) for stage in (1, 2) for method in ("gradcam", "layercam")
    ] * 3
    images = [digit, digit.rotate(90)] * 6
    alone = [networks[0].look(image, wish) for image, wish in zip(images, wishes, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(networks[0].look, images, wishes))
    for one, other in zip(alone, at_once, strict=True):
        assert one.best == other.best
        assert one.images[-1].caption == other.images[-1].caption
        assert np.array_equal(np.asarray(one.images[-1].image), np.asarray(other.images[-1].image))


def test_names_are_no_html():
    image = CaptionedImage("<i>", Image.new("RGB", (4, 4)))
    look = Result("<b>", "<u>", [("<s>", 0.5)], [image], ["<p>"], "<a>")
    parts = ("cards", [look]), ("charts", [("<b>", [image])]), ("message", "<em>")
    page = "".join(render_part("demo.html", *part) for part in parts)
    for text in ("u", "s", "a", "em"):
        assert f"<{text}>" not in page
    for text in ("b", "u", "s", "i", "p", "a", "em"):
        assert f"&lt;{text}&gt;" in page
    assert "http" not in page


def test_the_examples_are_those_of_validation(networks):
    digits = examples_for({"classifier"})
    assert [name for _, name in digits] == [f"digit {number}" for number in range(10)]
    assert examples_for(set()) == []
    assert kinds_of(networks) == {"detector"}


def test_without_gradio_it_says_how_to_install_it(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert sanet_here("demo", "--checkpoint", run / "best.pt", "--device", "cpu", "--no-browser") == 2
    assert "pip install 'shuffle-attention[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["::1", "no such name"])
def test_a_host_that_cannot_be(capsys, host):
    assert sanet_here("demo", "--no-browser", "--host", host) == 2
    assert f"--host {host} is neither an IPv4 address of this machine" in capsys.readouterr().err


def test_a_port_that_cannot_be(capsys):
    assert sanet_here("demo", "--port", 70000) == 2
    assert "--port must be between 1 and 65535, got 70000" in capsys.readouterr().err


def test_the_network_of_the_page_is_trained_once(shared_tree, tmp_path):
    """A run that was stopped is gone on with; a finished one, or a network alone, is taken as it is."""
    folder = tmp_path / "demo"
    small = {"model": "resnet10t", "data": str(shared_tree), "batch_size": 32, "warmup_epochs": 0, "device": "cpu"}
    recipe = load_recipe("digits").replaced(**small, workers=0, epochs=1)
    assert not is_finished(folder)
    train_digits(folder, CPU, recipe)
    assert is_finished(folder)
    (folder / "summary.json").unlink()
    assert not is_finished(folder)
    (folder / "last.pt").unlink()
    assert is_finished(folder)


def test_browsers_are_told_to_load_nothing_from_elsewhere():
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        sent.append(message)

    async def receive():
        raise AssertionError("nothing is read")

    asyncio.run(OwnOriginOnly(app)({"type": "http"}, receive, send))
    headers = dict(sent[0]["headers"])
    assert headers[b"x"] == b"y"
    assert headers[b"content-security-policy"].startswith(b"default-src 'self'")
    assert sent[1] == {"type": "http.response.body", "body": b""}


def asked(path: str, *parts: bytes, method: str = "POST") -> tuple[int, bytes]:
    """What :class:`UploadsOnly` answers with, and what of a request comes through it."""
    sent, came = [], []
    messages = iter(
        [{"type": "http.request", "body": part, "more_body": n < len(parts)} for n, part in enumerate(parts, 1)]
    )

    async def app(scope, receive, send):
        more = method == "POST"
        while more:
            message = await receive()
            came.append(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        return next(messages)

    async def send(message):
        sent.append(message)

    asyncio.run(UploadsOnly(app, Path("/uploads"))({"type": "http", "method": method, "path": path}, receive, send))
    return sent[0]["status"], b"".join(came)


def test_the_server_reads_uploads_alone():
    own = b'{"data": [{"path": "/uploads/a.png", "url": "http://127.0.0.1:7860/a.png"}, "http is a word"], "n": null}'
    assert asked("/queue/join", own[:20], own[20:]) == (200, own)
    assert asked("/queue/join", b"") == (200, b"")
    assert asked("/gradio_api/upload", b"--boundary") == (200, b"--boundary")
    assert asked("/file=/uploads/a.png", method="GET") == (200, b"")
    for path in ("/file=http://a.org/b.png", "/gradio_api/file/HTTPS://a.org/b.png", "/proxy=https://a.org"):
        assert asked(path, method="GET") == (403, b"")
    elsewhere = b'{"data": [[{"inner": {"path": " HTTPS://a.org/b.png", "meta": {"_type": "gradio.FileData"}}}]]}'
    assert asked("/queue/join", elsewhere[:30], elsewhere[30:]) == (403, b"")
    assert asked("/gradio_api/run/upload", elsewhere) == (403, b"")  # a name that a visitor may choose
    outside = ["/etc/hostname", "/uploads/../a.png", "/uploads-of-others/a.png", "a.png", ""]
    for path in [*outside, "/uploads/\0a.png", "/uploads/" + "a/" * 2500]:
        assert asked("/queue/join", json.dumps({"data": [{"path": path}]}).encode()) == (403, b""), path
    assert asked("/queue/join", b"[" * 100_000) == (400, b"")
    assert asked("/queue/join", b"{") == (400, b"")
    assert asked("/queue/join", b" " * 600_000, b" " * 600_000) == (413, b"")


def test_the_page_ends_though_a_visitor_is_on_it():
    """With no thread left that the end of the process does not wait for; alone, because Gradio leaves sockets open."""
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    code = """
import socket, threading, time
from shuffle_attention.sanet.demo.server import serve, temporary_uploads

with temporary_uploads("127.0.0.1") as uploads:
    from shuffle_attention.sanet.demo.page import PageState

    with socket.socket() as free:  # 7860 is what other tests may listen on at the same time
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = set(threading.enumerate())
    with serve(PageState(), "127.0.0.1", port, uploads):
        visitor = socket.create_connection(("127.0.0.1", port))
        visitor.sendall(b"POST /gradio_api/queue/join HTTP/1.1\\r\\nHost: a\\r\\nContent-Length: 9\\r\\n\\r\\n")
        time.sleep(1)  # what the visitor has to say does not come
    print([thread.name for thread in set(threading.enumerate()) - before if thread.daemon])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)
