"""Small pieces of HTML. Every function escapes the text it is given; what it returns is ready to join."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple


def prose(text: str) -> str:
    """Escaped text in which a number and its unit stay on one line."""
    return re.sub(r"(?<=\d) (?=[%a-zµA-Z])", "\u00a0", escape(text))


class Part(NamedTuple):
    """A share (0..1) of a :func:`stacked_bar`, with the figure to show beside its name."""

    name: str
    share: float
    shown: str
    colour: str


def section(title: str, lead: str, *blocks: str) -> str:
    """A titled section; ``lead`` is one sentence of plain text that says what the figures below mean."""
    text = f"<p>{prose(lead)}</p>" if lead else ""
    return f"<section><h2>{escape(title)}</h2>{text}{''.join(blocks)}</section>"


def card(name: str, value: str, sentence: str) -> str:
    """A headline figure with the sentence that reads it."""
    figure = f"<strong>{escape(value)}</strong>"
    return f'<div class="card"><h3>{escape(name)}</h3>{figure}<p>{prose(sentence)}</p></div>'


def warning_box(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    return f'<ul class="warnings" role="alert">{"".join(f"<li>{prose(text)}</li>" for text in warnings)}</ul>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column names the rows, the others are figures. Scrolls by itself on a narrow screen."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Name and value, one pair a line."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in rows)}</dl>"


def stacked_bar(label: str, parts: Sequence[Part]) -> str:
    """One bar of coloured shares with its legend; parts without a share keep their place in the legend."""
    segments = "".join(
        f'<i style="width:{100 * part.share:.3f}%;background:{part.colour}" title="{escape(part.name)}"></i>'
        for part in parts
        if part.share > 0
    )
    legend = "".join(
        f'<li><i style="background:{part.colour}"></i>{escape(part.name)} <b>{prose(part.shown)}</b></li>'
        for part in parts
    )
    name = f"<h3>{escape(label)}</h3>" if label else ""
    bar = f'<div class="bar" aria-hidden="true">{segments}</div>'
    return f'<div class="stack">{name}{bar}<ul>{legend}</ul></div>'


def chart(title: str, figure: Mapping[str, Any] | None, note: str = "") -> str:
    """A plotly figure as a titled box; the page's script draws it. ``None``: there is nothing to draw."""
    if figure is None:
        return ""
    caption = f"<figcaption><h3>{escape(title)}</h3>{f'<p>{prose(note)}</p>' if note else ''}</figcaption>"
    return (
        f'<figure>{caption}<div class="chart" role="img" aria-label="{escape(title)}">'
        f'<script type="application/json">{script_json(figure)}</script></div></figure>'
    )


def columns(*blocks: str) -> str:
    """Side by side where there is room."""
    return f'<div class="columns">{"".join(blocks)}</div>'


def details(title: str, text: str) -> str:
    """Preformatted text that opens on a click."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
