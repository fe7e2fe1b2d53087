"""The page: its components and their events. Only this file and the server import Gradio."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from PIL import Image

from ...errors import InputError
from ...explain.maps import METHODS, TITLES
from ..report.html import render_part
from .predictors import Network, Request, Result, examples_for
from .uploads import MAX_BYTES, MAX_PIXELS, read_upload

_METHODS = TITLES | {"scorecam": f"{TITLES['scorecam']} (slow)"}
_PREDICTED, _DEFAULT_LAYER = "predicted", "last stage with 4 x 4 positions"
_SHOWN_AT_FIRST = 3  # models
_KEPT = 3600  # seconds for which a visitor's image stays in memory


@dataclass
class PageState:
    """The content of the page, shared by all visitors.

    Attributes:
        networks: The models; none while the first is being trained.
        status: Message to show until then.
        examples: Kinds of examples, as :func:`examples_for` takes them.
    """

    networks: list[Network] = field(default_factory=list)
    status: str = ""
    examples: set[str] = field(default_factory=set)

    def chosen(self, labels: Sequence[str]) -> list[Network]:
        """Return the models with these labels; if there is only one, that one."""
        return [n for n in self.networks if n.label in labels] if len(self.networks) > 1 else self.networks


def build_page(shelf: PageState) -> gr.Blocks:
    """Return the page; a visitor's choices stay in that visitor's session."""
    examples = examples_for(shelf.examples)
    # Gradio writes uploads to its folder; they are read at once and removed within 90 seconds.
    with gr.Blocks(title="shuffle-attention", analytics_enabled=False, delete_cache=(20, 60)) as page:
        visit = gr.State(None, time_to_live=_KEPT)
        gr.HTML(_part("head"))
        timer = gr.Timer(1.0, active=False)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                upload = gr.File(
                    label=f"Image, up to {MAX_BYTES // 2**20} MB and {MAX_PIXELS // 10**6} megapixels",
                    file_types=["image"],
                    height=160,
                    elem_id="upload",
                )
                gallery = gr.Gallery(
                    [(image, name) for image, name in examples],
                    label="Or an example that was not trained on",
                    height="auto",
                    format="png",
                    object_fit="contain",
                    allow_preview=False,
                    buttons=[],
                    interactive=False,
                    visible=bool(examples),
                    elem_id="examples",
                )
                networks = gr.CheckboxGroup([], label="Networks", visible=False, elem_id="networks")
            with gr.Column(scale=5, min_width=300):
                message = gr.HTML(visible=False, elem_id="message")
                with gr.Row(elem_id="wishes"):
                    target = gr.Dropdown([_PREDICTED], value=_PREDICTED, label="Class", min_width=140, elem_id="target")
                    method = gr.Dropdown(
                        [(_METHODS[METHODS[0]], METHODS[0])], label="Method", min_width=140, elem_id="method"
                    )
                    layer = gr.Dropdown(
                        [_DEFAULT_LAYER],
                        value=_DEFAULT_LAYER,
                        allow_custom_value=True,
                        label="Layer: a stage, or a module's name",
                        min_width=240,
                        elem_id="layer",
                    )
                    threshold = gr.Slider(
                        0.05,
                        0.95,
                        0.5,
                        step=0.05,
                        label="Least score of what is detected",
                        min_width=240,
                        visible=False,
                    )
                result = gr.HTML(elem_id="result")
                gates = gr.HTML(elem_id="gates")

        def offer() -> list[Any]:
            """Return the available choices and the message."""
            if not shelf.networks:
                return [*(gr.skip() for _ in range(5)), _tell(shelf.status), gr.Timer(active=True)]
            labels = [network.label for network in shelf.networks]
            classifiers = [network for network in shelf.networks if network.classes]
            gated = any(network.gated for network in classifiers)
            methods = [(_METHODS[name], name) for name in METHODS if name != "group" or gated]
            classes = dict.fromkeys(name for network in classifiers for name in network.classes)
            layers = dict.fromkeys(name for network in classifiers for name in network.layers)
            some = bool(classifiers)
            return [
                gr.CheckboxGroup(labels, value=labels[:_SHOWN_AT_FIRST], visible=len(labels) > 1),
                gr.Dropdown([_PREDICTED, *classes], value=_PREDICTED, visible=some),
                gr.Dropdown(methods, value=METHODS[0], visible=some),
                gr.Dropdown([_DEFAULT_LAYER, *layers], value=_DEFAULT_LAYER, visible=some),
                gr.Slider(visible=len(classifiers) < len(labels)),
                _tell(),
                gr.Timer(active=False),
            ]

        def receive(file: dict[str, Any] | None) -> tuple[Any, ...]:
            """Read an upload and clear the field for the next."""
            if file is None:
                return gr.skip(), gr.skip(), gr.skip()
            try:
                return read_upload(file["path"]), None, _tell()
            except (InputError, OSError) as error:
                return None, None, _tell(str(error), wrong=True)

        def choose(event: gr.SelectData) -> tuple[Any, ...]:
            return examples[event.index][0], _tell()

        def first(image: Image.Image | None) -> Any:
            """Show an example to a new visitor."""
            return examples[0][0] if image is None and examples and shelf.networks else image

        def look(
            image: Image.Image | None, labels: list[str], target: str, method: str, layer: str, threshold: float
        ) -> str:
            if image is None or not shelf.networks:
                return ""
            wish = Request(
                None if target == _PREDICTED else target,
                None if layer in (_DEFAULT_LAYER, "", None) else layer,
                method or METHODS[0],
                threshold,
            )
            chosen = shelf.chosen(labels)
            if not chosen:
                return _part("message", "choose a network", False)
            return _part("cards", [_look(network, image, wish) for network in chosen])

        def open_gates(image: Image.Image | None, labels: list[str]) -> str:
            if image is None:
                return ""
            try:
                charts = [(network.label, network.gates(image)) for network in shelf.chosen(labels) if network.gated]
            except (InputError, RuntimeError, MemoryError) as error:
                return _part("message", _reason(error), True)
            return _part("charts", charts)

        offered = [networks, target, method, layer, threshold, message, timer]
        wishes = [visit, networks, target, method, layer, threshold]
        options: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
        quiet = {**options, "show_progress": "hidden"}

        def then_show(event: Any) -> None:
            event = event.then(look, wishes, result, **options)
            event.then(open_gates, [visit, networks], gates, **options)

        for begin in (page.load, timer.tick):
            then_show(begin(offer, None, offered, **quiet).then(first, visit, visit, **quiet))
        received = upload.upload(
            receive, upload, [visit, upload, message], preprocess=False, concurrency_limit=2, **quiet
        )
        then_show(received)
        then_show(gallery.select(choose, None, [visit, message], **quiet))
        then_show(networks.input(lambda: None, None, None, **quiet))
        for control in (target, method, layer):
            control.input(look, wishes, result, trigger_mode="always_last", **options)
        threshold.release(look, wishes, result, trigger_mode="always_last", **options)
    page.queue(max_size=64, default_concurrency_limit=4)
    return page


def _part(macro: str, *values: object) -> str:
    return render_part("demo.html", macro, *values)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _tell(text: str = "", *, wrong: bool = False) -> gr.HTML:
    return gr.HTML(_part("message", text, wrong), visible=bool(text))


def _look(network: Network, image: Image.Image, wish: Request) -> Result:
    """Return a model's results, or why it has none: a failure, such as lack of memory, leaves the other models."""
    try:
        return network.look(image, wish)
    except (InputError, RuntimeError, MemoryError) as error:
        return Result(network.label, network.predictor.about, [], [], [], _reason(error))
