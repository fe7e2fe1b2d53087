"""The page of ``sanet demo`` in a browser."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from browsers import PATIENCE, chromium, require
from conftest import CPU
from pages import write_detector
from shuffle_attention.checkpoints import read_checkpoint, write_checkpoint
from shuffle_attention.sanet.demo.predictors import Request, open_networks
from shuffle_attention.sanet.demo.uploads import MAX_BYTES, read_upload


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    if sys.version_info < (3, 11):
        pytest.skip("torchcam needs Python 3.11")
    require("gradio", "torchcam")


@pytest.fixture(scope="module")
def checkpoints(run, tmp_path_factory) -> list[Path]:
    """A classifier of digits and a detector; both name the embedded data, which the page has examples of."""
    folder = tmp_path_factory.mktemp("checkpoints")
    content = read_checkpoint(run / "best.pt")
    content["recipe"]["data"] = "digits"
    write_checkpoint(content, folder / "classifier.pt")
    return [folder / "classifier.pt", write_detector(folder / "detector.pt")]


@pytest.fixture(scope="module")
def temporary(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def page_address(tools, checkpoints, temporary) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "shuffle_attention", "demo", "--port", str(port), "--no-browser"]
    command += ["--device", "cpu", "--checkpoint", *map(str, checkpoints)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None
    try:
        line = server.stdout.readline()
        assert line == f"the page is at http://127.0.0.1:{port}/, until Ctrl-C\n", line + server.stdout.read()
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.send_signal(signal.SIGTERM)
        rest, _ = server.communicate(timeout=30)
    assert server.returncode == 128 + signal.SIGTERM, rest
    assert "Traceback" not in rest, rest
    assert not list(temporary.glob("sanet-demo-*")), "uploads are left"


@pytest.fixture(scope="module")
def browser(tools) -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser, page_address) -> Iterator[Callable[..., Any]]:
    """Open the page as one more visitor, and check at the end that it requested nothing from other hosts."""
    contexts, asked, errors = [], [], []

    def open_page(width: int = 1280, height: int = 800) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(page_address)
        page.wait_for_selector("#result .card img")
        return page

    yield open_page
    for context in contexts:
        context.close()
    elsewhere = [url for url in asked if not url.startswith((page_address, "data:", "blob:"))]
    assert (elsewhere, errors) == ([], [])


def card(page: Any, number: int = 0) -> Any:
    return page.locator("#result .card").nth(number)


def upload(page: Any, path: Path) -> None:
    # A visitor acts on what is painted: the field is cleared in the same update that shows an answer.
    page.evaluate("() => new Promise((painted) => requestAnimationFrame(() => requestAnimationFrame(painted)))")
    page.locator("#upload input[type=file]").set_input_files(path)


def best(page: Any) -> list[tuple[str, str]]:
    rows = card(page).locator(".best li")
    return [tuple(rows.nth(number).inner_text().split("\n")) for number in range(rows.count())]


def until_shown(page: Any, expected: list[tuple[str, str]]) -> None:
    """Wait until the classes and probabilities are the expected ones."""
    (name, share), *_ = expected
    page.wait_for_function(
        "([name, share]) => { const row = document.querySelector('#result .card .best li');"
        " return row && row.innerText.includes(name) && row.innerText.includes(share); }",
        arg=[name, share],
    )
    assert best(page) == expected


@pytest.fixture(scope="module")
def expected(checkpoints) -> Callable[[Path], list[tuple[str, str]]]:
    """Classes and probabilities that the page must list for a file: those of the model without the page."""
    (network,) = open_networks(checkpoints[:1], CPU)

    def of(path: Path) -> list[tuple[str, str]]:
        look = network.look(read_upload(path), Request())
        return [(row.name, f"{100 * row.share:.1f} %") for row in look.best]

    return of


@pytest.fixture(scope="module")
def digits(shared_tree) -> list[Path]:
    return [shared_tree / f"val/digit{label}/001.png" for label in range(4)]


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=["desktop", "phone"])
def test_a_visitor_finds_an_example_with_prediction_map_gates_and_detections(visit, size):
    page = visit(*size)
    assert len(best(page)) == 4
    assert card(page).locator("img").count() == 2
    assert "where it sees" in card(page).locator("figcaption").nth(1).inner_text()
    assert "with a score of at least 0.50" in card(page, 1).locator("figcaption").inner_text()
    assert not page.locator("#gates .gates").count()
    page.get_by_text("Gates of shuffle attention").click()
    page.wait_for_selector("#gates .gates:has-text('layer')")
    assert "lie between" in page.locator("#gates").inner_text() or page.locator("#gates .ranges").count()
    before, preview = card(page).inner_html(), page.locator("#preview").inner_text()
    page.locator("#examples button").nth(3).click()
    page.wait_for_function("before => document.querySelector('#result .card').innerHTML != before", arg=before)
    assert page.locator("#preview").inner_text() != preview
    broken = "images => images.filter(image => !image.naturalWidth).length"
    assert page.locator("#preview img, #result img, #gates img").evaluate_all(broken) == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_an_upload_is_predicted_and_explained_as_asked(visit, digits, expected):
    page = visit()
    upload(page, digits[2])
    until_shown(page, expected(digits[2]))
    assert page.locator("#preview").inner_text() == f"{digits[2].name}\n32 x 32 pixels"
    for control, value, caption in (
        ("layer", "stage1", "at layer1, 8 x 8"),
        ("target", "digit3", "digit3 ("),  # evidence for it, or that there is none
    ):
        choose(page, control, value)
        page.wait_for_selector(f"#result figcaption:has-text('{caption}')")
    choose(page, "layer", "stage9")
    page.wait_for_selector("#result .alert:has-text('no layer of')")
    assert "stage1 (layer1)" in card(page).locator(".alert").inner_text()
    assert best(page) == expected(digits[2])


def choose(page: Any, control: str, value: str) -> None:
    """Select a value of a list, or type one that it does not have."""
    field = page.locator(f"#{control} input")
    field.click()
    options = page.locator(f"#{control} [role=option]")
    options.first.wait_for()
    if value in [text.strip().removeprefix("✓").strip() for text in options.all_inner_texts()]:
        options.filter(has_text=re.compile(rf"^\W*{value}\W*$")).click()
    else:
        field.fill(value)
        field.press("Enter")


def test_unreadable_files_are_refused_and_the_page_goes_on(visit, digits, expected, tmp_path):
    page = visit()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 100)
    Image.new("1", (10_000, 10_000)).save(tmp_path / "huge.png")
    for name, message in (
        ("broken.png", "broken.png is not an image"),
        ("huge.png", "100 million, and 50 million are allowed"),
    ):
        upload(page, tmp_path / name)
        page.wait_for_selector(f"#preview [role=alert]:has-text('{message}')")
        page.wait_for_function("!document.querySelector('#result .card')")
    with (tmp_path / "heavy.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    upload(page, tmp_path / "heavy.png")
    page.wait_for_selector("text=/maximum allowed size/i")
    upload(page, digits[1])
    until_shown(page, expected(digits[1]))
    assert page.locator("#preview [role=alert]").count() == 0


def test_two_visitors_at_once_see_each_their_own(visit, digits, expected):
    pages = [visit(), visit()]
    for page, path in zip(pages, digits, strict=False):
        upload(page, path)
    for page, path in zip(pages, digits, strict=False):
        until_shown(page, expected(path))
    # Each visitor chooses another layer of the same models.
    for page, stage in zip(pages, ("stage1", "stage2"), strict=True):
        choose(page, "layer", stage)
    for page, path, layer in zip(pages, digits, ("layer1", "layer2"), strict=False):
        page.wait_for_selector(f"#result figcaption:has-text('at {layer},')")
        assert best(page) == expected(path)


def test_a_request_written_by_hand_makes_the_server_read_nothing_but_uploads(visit, digits, expected):
    """Gradio would load an address, without the limits of an upload."""
    page = visit()
    with page.expect_request("**/queue/join?*") as joined:
        upload(page, digits[0])
    until_shown(page, expected(digits[0]))
    url, event = joined.value.url, joined.value.post_data_json

    def statuses(path: str) -> list[int]:
        """Return the status of requests to read a file and to send it."""
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        return page.evaluate(
            """async ([url, event, path]) => [
                (await fetch(url, {method: "POST", headers: {"Content-Type": "application/json"},
                                   body: JSON.stringify(event)})).status,
                (await fetch(new URL("gradio_api/file=" + path, location))).status,
            ]""",
            [url, event | {"data": [file for _ in event["data"]]}, path],
        )

    own = event["data"][0]["path"]
    assert statuses(own)[0] == 200
    for path in ("http://127.0.0.1:9/a.png", "/etc/hostname", str(digits[1]), f"{own}/../../../outside.png"):
        assert statuses(path) == [403, 403], path
    upload(page, digits[1])
    until_shown(page, expected(digits[1]))
