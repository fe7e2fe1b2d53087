"""The page: its components and their events. Only this file and the server import Gradio."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from fastapi import FastAPI
from PIL import Image

from ...errors import InputError
from ...explain.maps import METHODS, TITLES
from ..report.html import render_part
from .predictors import Network, Request, Result
from .uploads import MAX_BYTES, MAX_PIXELS, read_upload

_PREDICTED, _AUTOMATIC = "predicted class", "automatic"
_SHOWN_AT_FIRST = 3  # models
_SESSIONS = 128  # visitors whose images are kept in memory at once
_REMEMBERED = 3600  # seconds for which a visitor's image stays in memory
_QUEUE = 1000  # requests that wait; a visitor has a few


def _part(macro: str, *values: object) -> str:
    return render_part("demo.html", macro, *values)


_HINT = _part("message", "Drop an image. What the model sees in it appears here.")


@dataclass(frozen=True)
class Visit:
    """The image that a visitor looks at, and its name."""

    image: Image.Image
    name: str


class Page:
    """The page; a visitor's choices stay in that visitor's session.

    Args:
        networks: The models.
        examples: Example images with their names.

    Attributes:
        app: The application that serves it.
    """

    def __init__(self, networks: Sequence[Network], examples: Sequence[tuple[Image.Image, str]]):
        self.networks = networks
        depths = {network.bit_depth for network in networks}
        self.bit_depth = depths.pop() if len(depths) == 1 else None
        self.examples = [Visit(image, name) for image, name in examples]
        with gr.Blocks(title="shuffle-attention", analytics_enabled=False) as self.blocks:
            self._build()
        self.blocks.queue(max_size=_QUEUE, default_concurrency_limit=4)
        self.blocks.state_session_capacity = _SESSIONS
        fonts = ["system-ui", "sans-serif"]
        self.app = gr.mount_gradio_app(
            FastAPI(openapi_url=None),
            self.blocks,
            "/",
            max_file_size=MAX_BYTES,
            run_history=False,
            footer_links=[],
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            theme=gr.themes.Default(font=fonts, font_mono=fonts),
            css=render_part("demo.html", "style"),
        )

    def accepts(self, event: dict[str, Any]) -> bool:
        """Return whether a visitor's browser may send an event: its function, values and session."""
        number, session, values = (event.get(name) for name in ("fn_index", "session_hash", "data"))
        function = self.blocks.fns.get(number) if type(number) is int else None
        if function is None or not isinstance(session, str) or not 0 < len(session) <= 64:
            return False
        if not isinstance(values, list) or len(values) != len(function.inputs):
            return False
        try:
            for component, value in zip(function.inputs, values, strict=True):
                if isinstance(component, gr.File):
                    if value is not None and not isinstance(value["path"], str):
                        return False
                elif not isinstance(component, gr.State):
                    component.preprocess(value)  # pyright: ignore[reportAttributeAccessIssue]
        except Exception:  # of any kind: Gradio's about a value that the component cannot have
            return False
        return True

    def _build(self) -> None:
        labels = [network.label for network in self.networks]
        classifiers = [network for network in self.networks if network.classes]
        gated = any(network.gated for network in self.networks)
        classes = dict.fromkeys(name for network in classifiers for name in network.classes)
        layers = dict.fromkeys(name for network in classifiers for name in network.layers)
        methods = [
            (f"{TITLES[name]} (slow)" if name == "scorecam" else TITLES[name], name)
            for name in METHODS
            if name != "group" or any(network.gated for network in classifiers)
        ]
        visit, opened = gr.State(None, time_to_live=_REMEMBERED), gr.State(False)
        gr.HTML(_part("head"))
        with gr.Row():
            with gr.Column(scale=2, min_width=300, elem_id="choices"):
                upload = gr.File(
                    label=f"Image, up to {MAX_BYTES // 2**20} MB and {MAX_PIXELS // 10**6} megapixels",
                    file_types=["image"],
                    height=130,
                    elem_id="upload",
                )
                preview = gr.HTML(elem_id="preview")
                gallery = gr.Gallery(
                    [(example.image, example.name) for example in self.examples],
                    label="Or an example that was not trained on",
                    height="auto",
                    format="png",
                    object_fit="cover",
                    allow_preview=False,
                    buttons=[],
                    interactive=False,
                    visible=bool(self.examples),
                    elem_id="examples",
                )
                shown = gr.CheckboxGroup(
                    labels, value=labels[:_SHOWN_AT_FIRST], label="Models", visible=len(labels) > 1, elem_id="models"
                )
            with gr.Column(scale=5, min_width=300):
                with gr.Row(elem_id="wishes"):
                    choice = partial(gr.Dropdown, min_width=140, visible=bool(classifiers))
                    named = partial(choice, allow_custom_value=True)
                    target = named([_PREDICTED, *classes], value=_PREDICTED, label="Class to explain", elem_id="target")
                    method = choice(methods, value=METHODS[0], label="Method", elem_id="method")
                    layer = named([_AUTOMATIC, *layers], value=_AUTOMATIC, label="Layer or stage", elem_id="layer")
                    detects = any(network.detects for network in self.networks)
                    threshold = gr.Slider(
                        0.05, 0.95, 0.5, step=0.05, label="Minimum score", min_width=220, visible=detects
                    )
                result = gr.HTML(_HINT, elem_id="result")
                with gr.Accordion("Gates of shuffle attention", open=False, visible=gated) as accordion:
                    gates = gr.HTML(elem_id="gates")

        wishes = [visit, shown, target, method, layer, threshold]
        options: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
        quiet = {**options, "show_progress": "hidden"}

        def then_show(event: Any) -> None:
            event = event.then(self._look, wishes, result, **options)
            event.then(self._gates, [visit, shown, opened], gates, **options)

        then_show(self.blocks.load(self._begin, visit, [visit, preview], **quiet))
        received = [visit, upload, preview]
        dropped: dict[str, Any] = {**quiet, "concurrency_limit": 2, "trigger_mode": "multiple"}  # answer every image
        then_show(upload.upload(self._receive, upload, received, preprocess=False, **dropped))
        then_show(gallery.select(self._choose, None, [visit, preview], **quiet))
        then_show(shown.input(lambda: None, None, None, **quiet))
        for control in (target, method, layer):
            control.input(self._look, wishes, result, trigger_mode="always_last", **options)
        threshold.release(self._look, wishes, result, trigger_mode="always_last", **options)
        expanded = accordion.expand(lambda: True, None, opened, **quiet)
        expanded.then(self._gates, [visit, shown, opened], gates, **options)
        accordion.collapse(lambda: False, None, opened, **quiet)

    def _begin(self, visit: Visit | None) -> tuple[Any, ...]:
        """Show an example to a new visitor."""
        if visit is None and self.examples:
            return _preview(self.examples[0])
        return gr.skip(), gr.skip()

    def _receive(self, file: dict[str, Any] | None) -> tuple[Any, ...]:
        """Read an upload and clear the field for the next."""
        if file is None:
            return gr.skip(), gr.skip(), gr.skip()
        try:
            visit, preview = _preview(
                Visit(read_upload(file["path"], self.bit_depth), str(file.get("orig_name") or "your image")[:100])
            )
        except (InputError, OSError) as error:
            return None, None, _part("message", str(error), True)
        return visit, None, preview

    def _choose(self, event: gr.EventData) -> tuple[Any, ...]:
        """Show the example that was clicked."""
        data = event._data
        index = data.get("index") if isinstance(data, dict) else None
        if type(index) is int and 0 <= index < len(self.examples):
            return _preview(self.examples[index])
        return gr.skip(), gr.skip()

    def _chosen(self, labels: Sequence[str]) -> list[Network]:
        """Return the models with these labels; if there is only one, that one."""
        return [n for n in self.networks if n.label in labels or len(self.networks) == 1]

    def _look(
        self, visit: Visit | None, labels: list[str], target: Any, method: str, layer: Any, threshold: float
    ) -> str:
        if visit is None:
            return _HINT
        wish = Request(
            None if target in (_PREDICTED, "", None) else str(target),
            None if layer in (_AUTOMATIC, "", None) else str(layer),
            method,
            threshold,
        )
        chosen = self._chosen(labels)
        if not chosen:
            return _part("message", "Choose a model.")
        return _part("cards", [_result(network, visit.image, wish) for network in chosen])

    def _gates(self, visit: Visit | None, labels: list[str], opened: bool) -> Any:
        """Show the gates if the visitor has opened them."""
        if visit is None or not opened:
            return ""
        try:
            return _part("gates", [(n.label, *n.gates(visit.image)) for n in self._chosen(labels) if n.gated])
        except (InputError, RuntimeError, MemoryError) as error:
            return _part("message", _reason(error), True)


def _preview(visit: Visit) -> tuple[Visit, str]:
    return visit, _part("preview", visit.name, visit.image)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _result(network: Network, image: Image.Image, wish: Request) -> Result:
    """Return a model's results, or why it has none: a failure, such as lack of memory, leaves the other models."""
    try:
        return network.look(image, wish)
    except (InputError, RuntimeError, MemoryError) as error:
        return Result(network.label, network.about, fault=_reason(error))
