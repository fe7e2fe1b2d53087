"""Results, refusals and temporary files of the page of ``sanet demo``; ``test_browser.py`` opens it in a browser."""

import asyncio
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from conftest import CPU, sanet_here
from forked import start_program
from pages import write_classifier, write_detector
from shuffle_attention.errors import DataError, InputError
from shuffle_attention.explain.gates import attention_layers
from shuffle_attention.sanet.commands.demo import is_finished, train_digits
from shuffle_attention.sanet.demo import guard as guards
from shuffle_attention.sanet.demo import uploads
from shuffle_attention.sanet.demo.guard import Guard, Hosts
from shuffle_attention.sanet.demo.predictors import (
    CaptionedImage,
    LayerGates,
    Network,
    Request,
    Result,
    Row,
    examples_for,
    open_networks,
)
from shuffle_attention.sanet.demo.server import Waiting
from shuffle_attention.sanet.demo.uploads import Uploads, read_upload, upload_folder
from shuffle_attention.sanet.recipes.recipe import load_recipe
from shuffle_attention.sanet.report.html import render_part
from shuffle_attention.sanet.training.run_lock import LOCK, run_lock

torchcam = pytest.mark.skipif(sys.version_info < (3, 11), reason="torchcam needs Python 3.11")


def saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def test_an_upload_is_upright_rgb_and_no_larger_than_needed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by a quarter, as a phone in portrait orientation writes it
    photo = Image.new("L", (3000, 1000), 10)
    photo.paste(200, (0, 0, 1500, 1000))
    read = read_upload(saved(photo, tmp_path / "photo.jpg", exif=exif))
    assert (read.mode, read.size) == ("RGB", (683, 2048))
    assert read.getpixel((300, 100)) == (200, 200, 200)
    assert read.getpixel((300, 1900)) == (10, 10, 10)


def test_16_bits_are_scaled(tmp_path):
    deep = Image.fromarray(np.full((4, 4), 128 << 8, np.uint16))
    assert read_upload(saved(deep, tmp_path / "deep.png")).getpixel((0, 0)) == (128, 128, 128)
    shallow = saved(Image.fromarray(np.full((4, 4), 128 << 4, np.uint16)), tmp_path / "shallow.png")
    assert read_upload(shallow, 12).getpixel((0, 0)) == (128, 128, 128)


# Pillow warns above 89 million pixels; a server logs that, and here it would be an error.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((10_000, 10_000), "10,000 x 10,000 pixels, 100 million, and 50 million are allowed"),
        ((20_000, 20_000), "far more than 50,000,000 pixels"),
        ((30_000, 100), "at most 20 times the other"),
    ],
)
def test_too_many_pixels_are_refused_from_the_header(tmp_path, monkeypatch, size, message):
    path = saved(Image.new("1", size), tmp_path / "black.png")
    assert path.stat().st_size < 100_000

    def load(*_):
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(DataError, match=message):
        read_upload(path)


def test_too_many_bytes_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("the file was opened"))
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(uploads.MAX_BYTES + 1)
    with pytest.raises(DataError, match=r"20\.0 MB are allowed"):
        read_upload(path)


def test_files_that_are_not_images_are_refused(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image at all")
    (tmp_path / "drawing.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    whole = saved(noise, tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    floats = Image.fromarray(np.zeros((4, 4), np.float32))
    saved(floats, tmp_path / "floats.tiff")
    for name, message in {
        "empty.png": "is an empty file",
        "text.png": "is not an image that can be read; JPEG, PNG",
        "drawing.png": "is not an image that can be read",
        "cut.png": "cannot be read",
        "floats.tiff": "32-bit float pixels",
    }.items():
        with pytest.raises(DataError, match=f"{name} .*{message}"):
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


def test_models_have_distinct_labels(networks, run, tmp_path):
    first, second, detector = (network.label for network in networks)
    assert (first, second) == (f"sa_resnet18 ({run / 'best.pt'})", f"sa_resnet18 ({run / 'last.pt'})")
    assert detector == "faster_rcnn-sa_resnet18"
    assert networks[0].about.endswith(f"{run.name}/best.pt")
    with pytest.raises(InputError, match="there is no checkpoint"):
        open_networks([tmp_path / "none.pt"], CPU)


def test_an_attached_model_is_labelled_as_such(tmp_path):
    attach = {"name": "shuffle", "groups": "auto"}
    (network,) = open_networks([write_classifier(tmp_path / "attached.pt", attach=attach)], CPU)
    assert network.label == "resnet10t + shuffle attention"
    assert network.gated


@torchcam
def test_a_classifier_shows_its_classes_and_a_map(networks, digit):
    network = networks[0]
    before = hooks(network.model)
    result = network.look(digit, Request(target="digit3", layer="stage1", method="layercam"))
    with torch.no_grad():
        shares = network.model(network.predictor.inputs(digit))[0].softmax(0)
    assert [row.name for row in result.best] == [network.classes[index] for index in shares.argsort(descending=True)]
    assert [row.share for row in result.best] == pytest.approx(sorted(shares.tolist(), reverse=True), abs=1e-6)
    seen, drawn = result.images
    assert np.array_equal(np.asarray(seen.image), np.asarray(digit))
    assert drawn.is_map
    assert drawn.image.size == (256, 256)  # eight times the input, so that the map is smooth
    expected = f"where it sees digit3 ({100 * shares[3]:.1f} %): LayerCAM at layer1, 8 x 8 positions"
    assert drawn.caption == expected
    assert (result.fault, hooks(network.model)) == ("", before)


@torchcam
def test_the_default_map_is_of_the_last_stage_with_4_x_4_positions(networks, digit):
    """At 32 pixels the last stage has one position, and the second has 4 x 4."""
    assert networks[0].look(digit, Request()).images[-1].caption.endswith("at layer2, 4 x 4 positions")
    assert (
        networks[0].look(digit, Request(method="group")).images[-1].caption.endswith("at layer2.1.sa, 4 x 4 positions")
    )
    last = networks[0].look(digit, Request(layer="stage4"))
    assert last.images[-1].caption.startswith("no evidence for digit")
    assert not last.images[-1].is_map


@pytest.mark.parametrize(
    ("wish", "message"),
    [(Request(target="digit7"), "no class 'digit7'"), (Request(layer="layer9"), "no layer of SAResNet 'layer9'")],
)
def test_a_map_that_cannot_be_computed_leaves_the_prediction(networks, digit, wish, message):
    result = networks[0].look(digit, wish)
    assert message in result.fault
    assert (len(result.best), len(result.images)) == (4, 1)


def test_a_detector_shows_the_objects_above_a_score_by_class(networks):
    ((photo, _), *_) = networks[2].examples()
    every, none = (networks[2].look(photo, Request(threshold=threshold)) for threshold in (0.0, 1.0))
    names = [row.name for row in every.best]
    assert 0 < len(names) == len(set(names))
    assert set(names) <= set(map(str, range(10)))
    assert [row.share for row in every.best] == sorted((row.share for row in every.best), reverse=True)
    assert every.images[0].caption.startswith(f"{sum(row.count or 0 for row in every.best)} object")
    assert (none.best, none.images[0].caption) == ([], "0 objects with a score of at least 1.00")
    assert not np.array_equal(np.asarray(every.images[0].image), np.asarray(none.images[0].image))


def test_gates_that_vary_are_drawn_and_others_summarised(networks, digit, tmp_path):
    network = open_networks([write_classifier(tmp_path / "sa.pt", "sa_resnet18")], CPU)[0]
    assert network.gates(digit) == ([], ["All gates of all layers are 0.73."])
    layers = attention_layers(network.model)
    for name in ("layer1.0.sa", "layer3.1.sa"):
        torch.nn.init.constant_(layers[name].sweight, 1.0)
    torch.nn.init.constant_(layers["layer2.0.sa"].cbias, 0.0)
    before = hooks(network.model)
    drawn, notes = network.gates(digit)
    assert hooks(network.model) == before
    assert [gates.layer for gates in drawn] == ["layer1.0.sa", "layer2.0.sa", "layer3.1.sa"]
    assert notes == ["All gates of layer1.1.sa, layer2.1.sa, layer3.0.sa, layer4.0.sa, layer4.1.sa are 0.73."]
    # The second varies over the channels alone, and the third has 2 x 2 positions.
    assert [len(gates.maps) for gates in drawn] == [5, 0, 0]
    assert drawn[1].ranges == [pytest.approx((0.5, 0.5, 0.5)), pytest.approx((0.731, 0.731, 0.731), abs=1e-3)]
    assert drawn[0].limits[1] - drawn[0].limits[0] > 0.05
    assert drawn[0].maps[1].image.size == (8, 8)
    assert networks[2].gates(digit)[1]
    (plain,) = open_networks([write_classifier(tmp_path / "plain.pt")], CPU)
    assert plain.gates(digit) == ([], [])


@torchcam
def test_visitors_at_once_see_what_each_would_see_alone(networks, digit):
    """Maps put hooks on the modules of a model, which visitors share."""
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


def test_names_are_escaped():
    image = CaptionedImage("<i>", Image.new("RGB", (4, 4)))
    result = Result("<b>", "<u>", [Row("<s>", 0.5), Row("<q>", 0.5, 2)], [image], "<a>")
    gates = LayerGates("<tt>", [(0.0, 0.5, 1.0)] * 2, "4 x 4", [image])
    parts: list[tuple[Any, ...]] = [
        ("cards", [result]),
        ("gates", [("<b>", [gates], ["<p>"])]),
        ("message", "<em>"),
        ("preview", "<h6>\ud800", image.image),
    ]
    page = "".join(render_part("demo.html", *part) for part in parts)
    for text in ("u", "s", "a", "q", "tt", "h6"):
        assert f"<{text}>" not in page
    for text in ("b", "u", "s", "q", "i", "p", "a", "em", "tt", "h6"):
        assert f"&lt;{text}&gt;" in page
    assert "http" not in page
    assert page.encode()


def test_examples_are_validation_images_of_the_data_that_checkpoints_name(networks, run, tmp_path):
    digits = open_networks([write_classifier(tmp_path / "digits.pt")], CPU)
    assert [name for _, name in digits[0].examples()] == list("0123456789")
    names = [name for _, name in examples_for([*networks, *digits])]
    # Two models have the same data: at most 10 images, of three data sets.
    assert names == [*(f"digit{label}" for label in (0, 2, 3)), *names[3:6], "0", "4", "9"]
    assert examples_for([]) == []
    gone = open_networks([write_classifier(tmp_path / "gone.pt", data=str(tmp_path / "gone"))], CPU)
    assert examples_for(gone) == []


def test_without_gradio_it_says_how_to_install_it(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert sanet_here("demo", "--checkpoint", run / "best.pt", "--device", "cpu", "--no-browser") == 2
    assert "pip install 'shuffle-attention[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["::1", "no such name"])
def test_an_invalid_host(capsys, host):
    assert sanet_here("demo", "--no-browser", "--host", host) == 2
    assert f"--host {host} is neither an IPv4 address of this machine" in capsys.readouterr().err


def test_an_invalid_port(capsys):
    assert sanet_here("demo", "--port", 70000) == 2
    assert "--port must be between 1 and 65535, got 70000" in capsys.readouterr().err


def test_the_model_of_the_page_is_trained_once(shared_tree, tmp_path):
    """A run that was stopped continues; a finished one, or a model alone, is taken as it is."""
    folder = tmp_path / "demo"
    small = {"model": "resnet10t", "data": str(shared_tree), "batch_size": 32, "warmup_epochs": 0, "device": "cpu"}
    recipe = load_recipe("digits").replaced(**small, workers=0, epochs=1)
    assert not is_finished(folder)
    train_digits(folder, CPU, recipe)
    assert "1 of 15 epochs done" in answer(Waiting(folder))[1]
    assert is_finished(folder)
    (folder / "summary.json").unlink()
    assert not is_finished(folder)
    (folder / "last.pt").unlink()
    assert is_finished(folder)


def test_folders_of_killed_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("killed", "alive", "new"):
        (tmp_path / f"sanet-demo-{name}/visitor").mkdir(parents=True)
    (tmp_path / "sanet-demo-killed" / LOCK).touch()
    for name in ("file", "elsewhere/visitor"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "elsewhere" / LOCK).touch()
    (tmp_path / "sanet-demo-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "sanet-demo-file").symlink_to(tmp_path / "file")
    with run_lock(tmp_path / "sanet-demo-alive"), upload_folder() as own:
        left = {path.name for path in tmp_path.glob("sanet-demo-*")} - {own.name}
        assert left == {f"sanet-demo-{name}" for name in ("alive", "new", "link", "file")}
        assert (tmp_path / "elsewhere/visitor").exists()
        with upload_folder():
            assert own.is_dir()
    assert not own.exists()
    if hasattr(os, "getuid"):  # a folder of another user
        (tmp_path / "sanet-demo-new" / LOCK).touch()
        user = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: user + 1)
        with upload_folder():
            assert (tmp_path / "sanet-demo-new").exists()


def test_uploads_are_bounded_in_total_and_removed_when_they_are_old(tmp_path, monkeypatch):
    (tmp_path / "example.png").touch()
    folder = Uploads(tmp_path)
    (tmp_path / "hash").mkdir()
    with (tmp_path / "hash/upload.png").open("wb") as file:
        file.truncate(uploads.MAX_TOTAL - 10)
    with folder.arriving() as first, folder.arriving() as second:
        assert [first(3), second(4), first(3), second(0)] == [True, True, True, True]
        assert [second(1), first(0)] == [False, False]
    with folder.arriving() as third:
        assert third(10)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + uploads.KEPT)
    with folder.arriving() as fourth:
        assert fourth(11)
    folder.remove_old()
    assert [path.name for path in tmp_path.iterdir()] == ["example.png"]


def answer(app: Any, path: str = "/", *parts: bytes, method: str = "GET", **headers: str) -> tuple[int, str]:
    """Return the status of a request to an application, and the text of its answer."""
    sent: list[dict[str, Any]] = []
    parts = parts or (b"",)
    messages = iter(
        {"type": "http.request", "body": part, "more_body": n < len(parts)} for n, part in enumerate(parts, 1)
    )
    pairs = {"host": "localhost:7860", "content-length": str(sum(map(len, parts)))} | headers
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in pairs.items()],
    }

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    assert not isinstance(app, Guard) or b"default-src 'self'" in dict(sent[0]["headers"])[b"content-security-policy"]
    return sent[0]["status"], b"".join(message["body"] for message in sent[1:]).decode()


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the request's body and the forwarded headers."""
    body, more = b"", scope["method"] == "POST"
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    forwarded = b"".join(value for name, value in scope["headers"] if name.startswith(b"x-forwarded"))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body + forwarded})


def guarded(
    tmp_path: Path, app: Any = echo, listening: str = "127.0.0.1", *allowed: str, accepts: bool = True
) -> Guard:
    return Guard(app, Hosts(listening, allowed), Uploads(tmp_path), lambda event: accepts)


@pytest.mark.parametrize(
    ("listening", "allowed", "refused"),
    [
        ("127.0.0.1", ["localhost", "LOCALHOST:1", "127.0.0.1:7860", "[::1]:7860", "a.org", "A.org:443"], ["10.0.0.1"]),
        ("10.0.0.1", ["10.0.0.1:7860", "localhost", "a.org"], ["10.0.0.2"]),
        ("box", ["box:7860", "localhost", "a.org"], ["10.0.0.2", "box.a.org"]),
        ("0.0.0.0", ["10.0.0.1:7860", "[fe80::1]", "localhost", "a.org"], []),
    ],
)
def test_the_page_is_served_under_its_own_names(tmp_path, listening, allowed, refused):
    guard = guarded(tmp_path, echo, listening, "a.org")
    assert {answer(guard, host=host)[0] for host in allowed} == {200}
    assert (Hosts(listening).exposed, guard.hosts.exposed) == (listening != "127.0.0.1", True)
    for host in [
        *refused,
        "evil.example",
        "localhost.evil.example",
        "evil@localhost",
        "localhost, evil",
        "[::1",
        "",
        " ",
    ]:
        status, text = answer(guard, host=host)
        assert (status, "--allow-host" in text) == (403, True), host


def test_an_address_is_not_a_host_to_allow(capsys):
    assert sanet_here("demo", "--allow-host", "https://a.org") == 2
    assert "--allow-host takes names such as demo.example.org, got https://a.org" in capsys.readouterr().err


def test_requests_from_other_sites_are_refused(tmp_path):
    guard = guarded(tmp_path, echo, "127.0.0.1", "a.org")
    for status, headers in [
        (200, {"origin": "http://localhost:7860"}),
        (200, {"origin": "https://a.org:8443"}),  # of a reverse proxy that names this server in Host
        (200, {"sec_fetch_site": "same-origin"}),
        (200, {"sec_fetch_site": "none"}),
        (200, {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}),  # a link
        (403, {"origin": "http://evil.example"}),
        (403, {"origin": "http://localhost:8080"}),
        (403, {"origin": "null"}),
        (403, {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}),
        (403, {"sec_fetch_site": "same-site", "sec_fetch_mode": "cors"}),
    ]:
        assert answer(guard, **headers)[0] == status, headers
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert answer(guard, "/gradio_api/upload", method="POST", **link)[0] == 403
    assert answer(guard, x_forwarded_host="evil.example", x_forwarded_proto="https") == (200, "https")


def test_only_the_routes_of_the_page_are_open(tmp_path):
    guard = guarded(tmp_path)
    for path in ("/config", "/assets/a.js", "/gradio_api/queue/data", "/gradio_api/heartbeat/x1"):
        assert answer(guard, path)[0] == 200, path
    assert answer(guard, f"/gradio_api/file={tmp_path}/a.png")[0] == 200
    for path in (
        "/etc/hostname",
        "http://a.org/b.png",
        f"{tmp_path}/../a.png",
        f"{tmp_path}-of-others/a",
        "a.png",
        "\0",
    ):
        assert answer(guard, f"/gradio_api/file={path}")[0] == 403, path
    closed = ["dev/reload", "openapi.json", "info", "proxy=https://a.org", "file/https://a.org", "vibe-code"]
    for path in ["/openapi.json", "/docs", "/monitoring", *(f"/gradio_api/{name}" for name in closed)]:
        assert answer(guard, path)[0] == 404, path
    for method, path in [("PUT", "/"), ("POST", "/config"), ("POST", "/gradio_api/run/look"), ("OPTIONS", "/config")]:
        assert answer(guard, path, method=method)[0] == 404, path


def test_events_name_no_files_but_uploads(tmp_path):
    guard, join = guarded(tmp_path), "/gradio_api/queue/join"
    own = json.dumps({"data": [{"path": f"{tmp_path}/a.png", "url": "http://localhost/a.png"}, "http is a word"]})
    assert answer(guard, join, own[:20].encode(), own[20:].encode(), method="POST") == (200, own)
    outside = [
        "/etc/hostname",
        f"{tmp_path}/../a.png",
        f"{tmp_path}-of-others/a.png",
        "a.png",
        "",
        " HTTPS://a.org/b.png",
    ]
    for path in [*outside, f"{tmp_path}/\0a.png", f"{tmp_path}/" + "a/" * 2500]:
        event = {"data": [[{"inner": {"path": path, "meta": {"_type": "gradio.FileData"}}}]]}
        assert answer(guard, join, json.dumps(event).encode(), method="POST")[0] == 403, path
    for status, parts in [
        (400, [b"[" * 50_000]),
        (400, [b"{"]),
        (400, [b"[]"]),
        (400, [b"\xff"]),
        (413, [b" " * 40_000] * 2),
    ]:
        assert answer(guard, join, *parts, method="POST")[0] == status, parts[0][:9]
    assert answer(guarded(tmp_path, accepts=False), join, b"{}", method="POST")[0] == 400


def test_an_upload_is_one_file_of_bounded_size(tmp_path):
    def form(*names: str) -> bytes:
        part = '--bb\r\nContent-Disposition: form-data; name="files"; filename="{}"\r\n\r\n'
        return "".join(part.format(name) + "pixels\r\n" for name in names).encode() + b"--bb--\r\n"

    def status(*parts: bytes, content_type: str = "multipart/form-data; boundary=bb", **headers: str) -> int:
        path = "/gradio_api/upload"
        return answer(guarded(tmp_path), path, *parts, method="POST", content_type=content_type, **headers)[0]

    one, two = form("a.png"), form("a.png", "b.png")
    assert status(one) == 200
    assert status(*(one[i : i + 1] for i in range(len(one)))) == 200  # a boundary may come in pieces
    assert status(two) == status(*(two[i : i + 1] for i in range(len(two)))) == 413
    assert status(form("")) == status(form()) == status(b"pixels") == status(b"") == 400
    assert status(one, content_type="application/json") == status(one, content_type="multipart/form-data") == 400
    assert status(one, content_length="") == status(one, content_length="-1") == 411
    assert status(b" " * 2**20, b"", content_length=str(21 * 2**20)) == 413
    with (tmp_path / "others.png").open("wb") as file:
        file.truncate(uploads.MAX_TOTAL)
    guard = guarded(tmp_path)
    (tmp_path / "others.png").rename(tmp_path / "new.png")
    assert (
        answer(guard, "/gradio_api/upload", one, method="POST", content_type="multipart/form-data; boundary=bb")[0]
        == 503
    )


def test_slow_uploads_end_and_take_no_room_from_others(tmp_path, monkeypatch):
    monkeypatch.setattr(guards, "KEPT", 0.01)
    monkeypatch.setattr(uploads, "MAX_TOTAL", 2 * uploads.MAX_BYTES)
    guard, sent = guarded(tmp_path), []
    headers = {"host": "localhost", "content-type": "multipart/form-data; boundary=bb", "content-length": str(2**24)}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": pairs}

    async def nothing() -> dict[str, Any]:
        await asyncio.sleep(30)
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("status"))

    async def visit() -> None:
        await asyncio.gather(*(guard(dict(scope), nothing, send) for _ in range(3)))

    asyncio.run(visit())
    assert sent == [408, None] * 3


def test_a_stream_for_an_unknown_visitor_is_refused_before_it_begins(tmp_path):
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("session_hash")

    assert answer(guarded(tmp_path, failing), "/gradio_api/queue/data") == (400, "this request cannot be processed")


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_an_error_of_the_application_is_no_traceback(tmp_path, late):
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        if late:
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"Internal Server Error"})
        raise KeyError("fn_index")

    assert answer(guarded(tmp_path, failing)) == (400, "this request cannot be processed")


def test_the_server_queues_a_hundred_visitors_refuses_nonsense_and_ends(tmp_path):
    """It starts beside a SOCKS proxy, prints nothing and leaves no thread; alone, as Gradio leaves sockets open."""
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    program = Path(__file__).parents[2] / "programs/visit_demo.py"
    environment = {"ALL_PROXY": "socks5://127.0.0.1:1", "http_proxy": "socks://127.0.0.1:1"}
    done = start_program(program, output=tmp_path / "printed", **environment)
    assert (done.wait(), done.printed()) == (0, "queued 100 of 100\nrefused 12 of 12\n[]\n")
