"""A view of the fleet as a picture: a card per node, a colour per model, a line to where the last request went."""

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, log
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from envs.render import Asked, NodeView, View, summary

WIDTH: Final = 960
HEIGHT: Final = 540

_FINE: Final = 2  # drawn at twice the size and halved: smooth edges.
_GAP: Final = 12
_LEFT: Final = 196  # of the cards.
_TOP: Final = 66
_BOTTOM: Final = 496
_RAIL: Final = (16, 176)

_PAPER: Final = "#f6f5f1"
_CARD: Final = "#ffffff"
_EDGE: Final = "#dedad2"
_INK: Final = "#2d2f33"
_FAINT: Final = "#85817a"
_FREE: Final = "#efede8"
_KEYS: Final = "#9a9791"
_CACHED: Final = "#cdcac4"
_ALARM: Final = "#b5483a"
_FAMILIES: Final = (
    "#4c78a8", "#e0954a", "#5f9e7c", "#b0688a", "#8576b8", "#bf9b30", "#4fa0a6", "#a8684f",
)  # fmt: skip


class Box(NamedTuple):
    """A rectangle in points of the picture."""

    left: float
    top: float
    right: float
    bottom: float


class _Canvas:
    """Draws in points of the picture on a finer image."""

    def __init__(self) -> None:
        self._image = Image.new("RGB", (WIDTH * _FINE, HEIGHT * _FINE), _PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def box(
        self, box: Box, fill: str | None, edge: str | None = None, *, width: float = 1, radius: float = 0
    ) -> None:
        if box.right - box.left < 0.5 or box.bottom - box.top < 0.5:
            return
        self._draw.rounded_rectangle(
            [_FINE * side for side in box], radius * _FINE, fill, edge, round(width * _FINE)
        )

    def text(
        self, x: float, y: float, words: str, size: float, colour: str = _INK, anchor: str = "ls"
    ) -> None:
        self._draw.text((x * _FINE, y * _FINE), words, colour, _font(size), anchor=anchor)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        self._draw.line(
            [(x * _FINE, y * _FINE) for x, y in points], colour, round(width * _FINE), joint="curve"
        )

    def polygon(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        self._draw.polygon([(x * _FINE, y * _FINE) for x, y in points], colour)

    def fitting(self, words: str, size: float, width: float) -> str:
        """The words, cut to a width."""
        font = _font(size)
        while words and font.getlength(words) > width * _FINE:
            words = words[:-1]
        return words

    def length(self, words: str, size: float) -> float:
        return _font(size).getlength(words) / _FINE

    def pixels(self) -> NDArray[np.uint8]:
        return np.asarray(self._image.reduce(_FINE))


@lru_cache
def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _FINE)


def draw(view: View) -> NDArray[np.uint8]:
    """The picture, shape ``(540, 960, 3)``."""
    canvas = _Canvas()
    colours = colours_of(view.models)
    boxes = layout(len(view.nodes))
    _header(canvas, view)
    _rail(canvas, view, colours)
    for box, node in zip(boxes, view.nodes, strict=True):
        _card(canvas, box, node, view.models, colours)
    for age, choice in enumerate(reversed(view.choices[-3:])):
        if choice.node >= 0:
            _highlight(canvas, boxes[choice.node], _mixed(colours[choice.model], _EDGE, 0.4 * age))
    if view.choices and view.choices[-1].node >= 0:
        _wire(canvas, boxes[view.choices[-1].node], colours[view.choices[-1].model])
    _legend(canvas, view.models, colours)
    return canvas.pixels()


def colours_of(models: Sequence[str]) -> list[str]:
    """A colour per model: one for all versions of a name, later ones lighter."""
    families = sorted({_family(model) for model in models})
    colours = []
    for model in models:
        version = model.partition("@")[2]
        lighter = 0.28 * ((int(version) - 1) % 3) if version.isdigit() else 0.0
        colours.append(_mixed(_FAMILIES[families.index(_family(model)) % len(_FAMILIES)], _CARD, lighter))
    return colours


def layout(nodes: int) -> list[Box]:
    """Where the cards are: rows and columns that make them about half again as wide as high."""
    wide, high = WIDTH - _GAP - _LEFT, _BOTTOM - _TOP

    def size(columns: int) -> tuple[float, float]:
        rows = ceil(nodes / columns)
        return (wide + _GAP) / columns - _GAP, (high + _GAP) / rows - _GAP

    def off(columns: int) -> float:
        width, height = size(columns)
        if min(width, height) <= 0:
            return float("inf")
        vacant = -nodes % columns  # places without a node
        return abs(log(width / height / 1.4)) + 3.0 * vacant / nodes

    columns = min(range(1, nodes + 1), key=off)
    width, height = size(columns)
    corners = [
        (_LEFT + (i % columns) * (width + _GAP), _TOP + (i // columns) * (height + _GAP))
        for i in range(nodes)
    ]
    return [Box(x, y, x + width, y + height) for x, y in corners]


def _family(model: str) -> str:
    return model.partition("@")[0]


def _mixed(colour: str, other: str, share: float) -> str:
    """A colour with a share of another."""
    pairs = zip(bytes.fromhex(colour[1:]), bytes.fromhex(other[1:]), strict=True)
    return "#" + bytes(round(a + (b - a) * min(share, 1.0)) for a, b in pairs).hex()


def _header(canvas: _Canvas, view: View) -> None:
    canvas.text(16, 38, f"{view.now_s:.1f} s", 24)
    canvas.text(_LEFT, 27, view.scenario, 14)
    canvas.text(_LEFT, 45, summary(view), 12, _FAINT)


def _rail(canvas: _Canvas, view: View, colours: Sequence[str]) -> None:
    """The request that is asked about, and where the last ones went."""
    left, right = _RAIL
    canvas.text(left, _TOP + 10, "next request", 11, _FAINT)
    if view.asked is not None:
        canvas.box(Box(left, _TOP + 18, right, _TOP + 66), _CARD, _EDGE, radius=6)
        _chip(
            canvas,
            left + 10,
            _TOP + 37,
            view.models[view.asked.model],
            colours[view.asked.model],
            right - left - 34,
        )
        canvas.text(left + 26, _TOP + 55, f"{view.asked.prompt_tokens} prompt tokens", 11, _FAINT)
    else:
        canvas.text(left, _TOP + 36, "none: the day is over", 12)
    canvas.text(left, _TOP + 96, "sent to", 11, _FAINT)
    for age, choice in enumerate(reversed(view.choices)):
        _sent(canvas, view, choice, colours, age)


def _sent(canvas: _Canvas, view: View, choice: Asked, colours: Sequence[str], age: int) -> None:
    left, right = _RAIL
    y = _TOP + 118 + 24 * age
    fade = 0.1 * age
    where = view.nodes[choice.node].id if choice.node >= 0 else "not sent"
    ink = _mixed(_INK if choice.node >= 0 else _ALARM, _PAPER, fade)
    canvas.text(right, y, where, 12, ink, "rs")
    _chip(
        canvas, left, y, view.models[choice.model], _mixed(colours[choice.model], _PAPER, fade),
        right - left - 24 - canvas.length(where, 12), ink,
    )  # fmt: skip


def _chip(
    canvas: _Canvas, x: float, y: float, model: str, colour: str, width: float, ink: str = _INK
) -> None:
    canvas.box(Box(x, y - 9, x + 10, y + 1), colour, radius=2)
    canvas.text(x + 16, y, canvas.fitting(model, 12, width), 12, ink)


def _card(canvas: _Canvas, box: Box, node: NodeView, models: Sequence[str], colours: Sequence[str]) -> None:
    canvas.box(box, _CARD, _EDGE, radius=6)
    width, height = box.right - box.left, box.bottom - box.top
    inset = 10 if width > 90 else 4
    left, right, y = box.left + inset, box.right - inset, box.top + inset
    if height >= 44 and width >= 60:
        _title(canvas, node, left, right, y)
        y += 20
    bar = Box(left, y, right, y + (14 if height >= 90 else 8))
    _memory(canvas, bar, node, colours)
    y = bar.bottom + 6
    if height >= 150:
        y = _contents(canvas, node, models, colours, Box(left, y, right, box.bottom))
    elif height >= 90:
        canvas.text(left, y + 10, f"{node.used_gib:.1f} of {node.total_gib:.0f} GiB", 10, _FAINT)
        y += 18
    _requests(canvas, node, colours, Box(left, y, right, box.bottom - 6))


def _title(canvas: _Canvas, node: NodeView, left: float, right: float, y: float) -> None:
    canvas.text(left, y + 11, canvas.fitting(node.id, 12, right - left), 12)
    if right - left < 90:
        return
    if node.slowed > 1.01:
        canvas.text(right, y + 11, f"{node.slowed:.1f}x slower", 11, _ALARM, "rs")
    else:
        canvas.text(right, y + 11, node.gpu, 11, _FAINT, "rs")


def _memory(canvas: _Canvas, bar: Box, node: NodeView, colours: Sequence[str]) -> None:
    """The card's memory: weights in their model's colour, pale where they are still on their way; then keys and values."""
    canvas.box(bar, _FREE)
    per_gib = (bar.right - bar.left) / node.total_gib
    x = bar.left
    for each in node.weights:
        there = x + each.gib * per_gib * each.loaded
        end = x + each.gib * per_gib
        canvas.box(Box(x, bar.top, end, bar.bottom), _mixed(colours[each.model], _CARD, 0.65))
        canvas.box(Box(x, bar.top, there, bar.bottom), colours[each.model])
        canvas.line([(end, bar.top), (end, bar.bottom - 0.5)], _CARD, 1)
        x = end
    for gib, colour in ((node.kv_gib, _KEYS), (node.cached_gib, _CACHED)):
        canvas.box(Box(x, bar.top, min(x + gib * per_gib, bar.right), bar.bottom), colour)
        x = min(x + gib * per_gib, bar.right)


def _contents(
    canvas: _Canvas, node: NodeView, models: Sequence[str], colours: Sequence[str], box: Box
) -> float:
    """What is on the card, in words; returns where it ends."""
    kept = f"{node.used_gib:.1f} of {node.total_gib:.0f} GiB, {node.kv_gib:.1f} keys and values"
    canvas.text(box.left, box.top + 10, canvas.fitting(kept, 10, box.right - box.left), 10, _FAINT)
    y = box.top + 18
    for each in node.weights[:4]:
        canvas.box(Box(box.left, y + 3, box.left + 9, y + 12), colours[each.model], radius=2)
        state = f"loading {each.loaded:.0%}" if each.loaded < 1.0 else ""
        canvas.text(box.right, y + 12, state, 11, _FAINT, "rs")
        room = box.right - box.left - 20 - canvas.length(state, 11)
        canvas.text(box.left + 15, y + 12, canvas.fitting(models[each.model], 11, room), 11)
        y += 16
    return y + 6


def _requests(canvas: _Canvas, node: NodeView, colours: Sequence[str], box: Box) -> None:
    """A square per sequence: filled in the batch, hollow in the queue; what has no room is a number."""
    room = box.bottom - box.top
    if room < 8:
        return
    if room >= 30:
        batch = f"batch {sum(node.running)}, queue {sum(node.waiting)}, in flight {node.in_flight}"
        canvas.text(box.left, box.top + 10, canvas.fitting(batch, 10, box.right - box.left), 10, _FAINT)
        box = box._replace(top=box.top + 16)
    size, pitch = 7.0, 9.0
    per_row = max(int((box.right - box.left) // pitch), 1)
    rows = max(int((box.bottom - box.top) // pitch), 1)
    squares = [(m, True) for m, count in enumerate(node.running) for _ in range(count)]
    squares += [(m, False) for m, count in enumerate(node.waiting) for _ in range(count)]
    fit = per_row * rows
    shown = len(squares) if len(squares) <= fit else max(fit - 4, 0)
    for k, (model, runs) in enumerate(squares[:shown]):
        x, y = box.left + (k % per_row) * pitch, box.top + (k // per_row) * pitch
        square = Box(x, y, x + size, y + size)
        canvas.box(square, colours[model] if runs else _CARD, colours[model], radius=1.5)
    if shown < len(squares):
        x, y = box.left + (shown % per_row) * pitch, box.top + (shown // per_row) * pitch
        canvas.text(x + 2, y + size, f"+{len(squares) - shown}", 10, _INK)


def _highlight(canvas: _Canvas, box: Box, colour: str) -> None:
    canvas.box(box, None, colour, width=2, radius=6)


def _wire(canvas: _Canvas, box: Box, colour: str) -> None:
    """From the list of choices through the gaps between the cards to the top of one."""
    start_y, gutter_x, gutter_y = _TOP + 114, _LEFT - 10, box.top - _GAP / 2
    x = (box.left + box.right) / 2
    canvas.line(
        [(_RAIL[1] + 3, start_y), (gutter_x, start_y), (gutter_x, gutter_y), (x, gutter_y), (x, box.top)],
        colour,
        2,
    )
    canvas.polygon([(x - 4.5, box.top - 1), (x + 4.5, box.top - 1), (x, box.top + 6)], colour)


def _legend(canvas: _Canvas, models: Sequence[str], colours: Sequence[str]) -> None:
    x, y = 16.0, HEIGHT - 16.0
    seen: dict[str, str] = {}
    for model, colour in zip(models, colours, strict=True):
        seen.setdefault(_family(model), colour)
    entries = [*seen.items(), ("keys and values", _KEYS), ("of earlier requests", _CACHED)]
    for name, colour in entries:
        if x + 20 + canvas.length(name, 11) > WIDTH - 16:
            break
        canvas.box(Box(x, y - 9, x + 10, y + 1), colour, radius=2)
        canvas.text(x + 15, y, name, 11, _FAINT)
        x += 33 + canvas.length(name, 11)
