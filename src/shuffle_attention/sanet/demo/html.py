"""What the page shows, as HTML: nothing of it is a file, and nothing in it comes from elsewhere."""

import base64
import io
from collections.abc import Sequence
from html import escape

from .predictors import Picture, Result

_SCALE = '<div class="scale"><span>least</span><i></i><span>most</span></div>'
_SMALL = 160  # pixels of the longer side below which a picture is shown with its pixels


def as_cards(looks: Sequence[Result]) -> str:
    """Returns a card for each network, side by side where there is room."""
    return f'<div class="cards">{"".join(map(_card, looks))}</div>'


def as_charts(charts: Sequence[tuple[str, Sequence[Picture]]]) -> str:
    """Returns the gates of each network, given as its label and its pictures."""
    parts = []
    for label, pictures in charts:
        shown = "".join(_figure(f'<div class="chart">{_image(drawn, "PNG")}</div>', drawn) for drawn in pictures)
        parts.append(f'<section class="gates"><h3>Gates of {escape(label)}</h3>{shown}</section>')
    return f'<div class="charts">{"".join(parts)}</div>' if parts else ""


def as_message(text: str, *, wrong: bool = False) -> str:
    """Returns what is to be told."""
    role = "alert" if wrong else "status"
    return f'<p class="message {role}" role="{role}">{escape(text)}</p>'


def _card(look: Result) -> str:
    rows = "".join(
        f"<li><span>{escape(name)}</span><b>{100 * share:.1f} %</b>"
        f'<i style="width:{100 * min(1.0, max(0.0, share)):.1f}%"></i></li>'
        for name, share in look.best
    )
    pictures = "".join(_figure(_image(drawn) + (_SCALE if drawn.is_map else ""), drawn) for drawn in look.pictures)
    said = "".join(f'<p class="note">{escape(note)}</p>' for note in look.notes)
    fault = as_message(look.fault, wrong=True) if look.fault else ""
    return (
        f'<article class="card"><h3>{escape(look.label)}</h3><p class="about">{escape(look.about)}</p>'
        f'<div class="body"><ol class="best">{rows}</ol><div class="pictures">{pictures}</div></div>'
        f"{said}{fault}</article>"
    )


def _figure(content: str, drawn: Picture) -> str:
    return f"<figure>{content}<figcaption>{escape(drawn.caption)}</figcaption></figure>"


def _image(drawn: Picture, kind: str | None = None) -> str:
    image = drawn.image
    small = max(image.size) <= _SMALL
    kind = kind or ("PNG" if small else "JPEG")
    data = io.BytesIO()
    image.save(data, kind, **({"quality": 88} if kind == "JPEG" else {}))
    said = base64.b64encode(data.getvalue()).decode()
    name = "small" if small else "large"
    return f'<img class="{name}" alt="{escape(drawn.caption)}" src="data:image/{kind.lower()};base64,{said}">'


# The colours of matplotlib's turbo, in which maps are drawn.
STYLE = """
.gradio-container { --quiet: color-mix(in srgb, var(--body-text-color) 68%, transparent); }
.html-container { padding: 0 !important; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 16px; }
.card, .gates { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 14px; min-width: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 16px; }
.card h3, .gates h3 { margin: 0; font-size: 1.05em; font-weight: 600; overflow-wrap: anywhere; }
.card .about, .card .note { margin: 2px 0 10px; color: var(--quiet); font-size: .85em; }
.card .best { list-style: none; margin: 0 0 12px; padding: 0; }
.card .best li { display: grid; grid-template-columns: 1fr auto; margin: 0 0 6px; font-size: .92em; }
.card .best span { overflow-wrap: anywhere; }
.card .best b { font-weight: 400; font-variant-numeric: tabular-nums; }
.card .best i { display: block; grid-column: 1 / 3; height: 4px; min-width: 1px; border-radius: 2px;
  background: var(--color-accent); opacity: .45; }
.card .best li:first-child { font-weight: 600; }
.card .best li:first-child b { font-weight: 600; }
.card .best li:first-child i { opacity: 1; }
.body { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 270px), 1fr)); gap: 4px 24px; }
.pictures { display: flex; gap: 10px; }
.pictures figure { flex: 1 1 0; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 6px; }
figure img.small { image-rendering: pixelated; }
figcaption { font-size: .8em; line-height: 1.35; color: var(--quiet); padding-top: 4px;
  overflow-wrap: anywhere; }
.gates figure { margin-top: 12px; }
.chart { background: white; border-radius: 6px; }
.chart img { max-width: 640px; }
.scale { display: grid; grid-template-columns: auto 1fr auto; gap: 6px; align-items: center; padding-top: 4px;
  font-size: .8em; color: var(--quiet); }
.scale i { height: 6px; border-radius: 3px; background: linear-gradient(90deg, #30123b, #4662d7, #36aaf9, #1ae4b6,
  #72fe5e, #c7ef34, #faba39, #f66b19, #cb2a04, #7a0403); }
#examples .grid-container { grid-template-columns: repeat(5, minmax(0, 1fr)) !important; gap: 6px;
  grid-auto-rows: auto; align-content: start; height: auto; }
#examples .grid-wrap { min-height: 0; max-height: none; padding-top: 26px; }
#examples .caption-label { display: none; }
#examples button { min-width: 0; height: auto; aspect-ratio: 1; }
.message { margin: 0; padding: 10px 12px; border-radius: 8px; overflow-wrap: anywhere;
  background: var(--background-fill-secondary); border-left: 4px solid var(--color-accent); }
.message.alert { border-left-color: #d33; }
.head h1 { margin: 0 0 2px; font-size: 1.5em; font-weight: 600; }
.head p { margin: 0; color: var(--quiet); }
"""
