"""Small drawings with facts in them, and the questions that each can answer, worked out step by step.

Five kinds: coloured shapes in rows, a clock, a bar chart, angles between rays, a rectangle or a right
triangle on a grid. A drawing is a pure function of its random generator. Every question is answered
from a few readings (a count, a bar's height, a ray's direction), so that an answer shows its steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw

Kind = Literal["count", "clock", "bars", "angle", "shape"]
KINDS: tuple[Kind, ...] = ("count", "clock", "bars", "angle", "shape")
SIDE = 48  # pixels
COLOURS = {"red": (215, 40, 40), "blue": (40, 80, 215), "gold": (225, 170, 20)}
_INK, _LINES = (20, 20, 20), (150, 150, 150)
_CELLS = 3  # rows, and columns, of the counted shapes
_TALLEST, _UNIT = 6, 7  # of bars and of sides; pixels a unit


@dataclass(frozen=True, eq=False)
class Drawing:
    """An RGB picture of SIDE x SIDE pixels and what it shows. faint: of little contrast."""

    kind: Kind
    image: Image.Image
    facts: Mapping[str, Any]
    faint: bool = False


@dataclass(frozen=True)
class Question:
    """text: ends in "?". readings: what must be read off the drawing, in order; each is one of its
    `choices`. work(readings) gives the steps before the last "=", and the answer; the answer is one
    of `answers`."""

    text: str
    readings: tuple[int, ...]
    choices: tuple[Sequence[int], ...]
    work: Callable[[Sequence[int]], tuple[str, str]]
    answers: Sequence[str]

    def solve(self, readings: Sequence[int] | None = None) -> tuple[str, str]:
        """(steps, answer), from other readings where given."""
        return self.work(self.readings if readings is None else readings)


def draw(rng: np.random.Generator, kind: Kind, faint: bool = False) -> Drawing:
    """A drawing of that kind; what is not told by the kind is drawn from `rng`."""
    image = _paper()
    facts = _DRAW[kind](rng, ImageDraw.Draw(image))
    if faint:  # half of the way to grey: told apart from a clear one at sight, and legible
        image = Image.blend(image, Image.new("RGB", image.size, (150, 150, 150)), 0.5)
    return Drawing(kind, image, facts, faint)


def _paper() -> Image.Image:
    """Redder to the left, bluer to the top: the vision tower knows no absolute place but by what it
    sees there, and learns a little sooner where a row is."""
    across, down = np.meshgrid(np.linspace(0, 1, SIDE), np.linspace(0, 1, SIDE))
    shade = np.stack([255 - 70 * across, np.full_like(across, 220), 255 - 70 * down], axis=-1)
    return Image.fromarray(shade.astype(np.uint8))


def questions(drawing: Drawing) -> list[Question]:
    """All that can be asked of it; at least two, with different texts."""
    return _ASK[drawing.kind](drawing.facts)


def description(drawing: Drawing) -> tuple[str, str] | None:
    """(prompt, what is seen) cell by cell, of counted shapes: `rb-,g--,rrb`. None for other kinds.
    Of no use as a question, it is what a model learns to look by."""
    if drawing.kind != "count":
        return None
    rows = ("".join(name[0] if name else "-" for name in row) for row in drawing.facts["rows"])
    return "look?", ",".join(rows)


def _between(rng: np.random.Generator, low: int, high: int) -> int:
    """low to high, both included."""
    return int(rng.integers(low, high + 1))


def _numbers(n: int) -> tuple[str, ...]:
    return tuple(map(str, range(n + 1)))


def _draw_count(rng: np.random.Generator, pen: ImageDraw.ImageDraw) -> dict[str, Any]:
    cell, rows = SIDE // _CELLS, []
    for row in range(_CELLS):
        rows.append([])
        for column in range(_CELLS):
            name = (*COLOURS, *COLOURS, None)[rng.integers(2 * len(COLOURS) + 1)]
            rows[-1].append(name)
            if name is None:
                continue
            x, y = (cell * i + cell // 2 + _between(rng, -1, 1) for i in (column, row))
            r, round_ = _between(rng, 4, 6), rng.random() < 0.5
            box = (x - r, y - r, x + r, y + r)
            (pen.ellipse if round_ else pen.rectangle)(box, fill=COLOURS[name])
    return {"rows": rows}


def _ask_count(facts: Mapping[str, Any]) -> list[Question]:
    def work(counts: Sequence[int]) -> tuple[str, str]:
        return "+".join(map(str, counts)), str(sum(counts))

    return [
        Question(
            f"count {colour}?",
            tuple(row.count(colour) for row in facts["rows"]),
            (range(_CELLS + 1),) * _CELLS,
            work,
            _numbers(_CELLS**2),
        )
        for colour in COLOURS
    ]


def _toward(turn: float, x: int, y: int, length: float) -> tuple[int, int, int, int]:
    """A line from (x, y); `turn` in degrees, anticlockwise from the right."""
    a = math.radians(turn)
    return x, y, round(x + length * math.cos(a)), round(y - length * math.sin(a))


def _draw_clock(rng: np.random.Generator, pen: ImageDraw.ImageDraw) -> dict[str, Any]:
    hour, quarter = _between(rng, 1, 12), _between(rng, 0, 3)
    x, y = (SIDE // 2 + _between(rng, -1, 1) for _ in range(2))
    r = _between(rng, 20, 22)
    pen.ellipse((x - r, y - r, x + r, y + r), outline=_INK)
    for tick in range(12):
        end = _toward(30 * tick, x, y, r)[2:]
        pen.line((*end, *_toward(30 * tick, x, y, r - 2)[2:]), fill=_INK)
    # The hour hand stays on its hour while the minutes pass.
    pen.line(_toward(90 - 90 * quarter, x, y, r - _between(rng, 3, 5)), COLOURS["blue"], 3)
    pen.line(_toward(90 - 30 * hour, x, y, r - _between(rng, 6, 8)), COLOURS["red"], 4)
    return {"hour": hour, "quarter": quarter}


def _ask_clock(facts: Mapping[str, Any]) -> list[Question]:
    hours, minutes = range(1, 13), range(0, 60, 15)

    def later(n: int) -> Question:
        return Question(
            f"hour+{n}?",
            (facts["hour"],),
            (hours,),
            lambda read: (f"{read[0]}+{n}", str((read[0] + n - 1) % 12 + 1)),
            tuple(map(str, hours)),
        )

    time = Question(
        "time?",
        (facts["hour"], 15 * facts["quarter"]),
        (hours, minutes),
        lambda read: (f"{read[0]},{read[1]}", f"{read[0]}:{read[1]:02d}"),
        tuple(f"{h}:{m:02d}" for h in hours for m in minutes),
    )
    return [time, *map(later, range(2, 7))]


def _draw_bars(rng: np.random.Generator, pen: ImageDraw.ImageDraw) -> dict[str, Any]:
    floor = SIDE - 1 - _between(rng, 1, 3)
    for height in range(_TALLEST + 1):
        pen.line((0, floor - _UNIT * height, SIDE, floor - _UNIT * height), fill=_LINES)
    heights = {}
    for place, i in enumerate(rng.permutation(len(COLOURS))):
        name, height = list(COLOURS)[i], _between(rng, 1, _TALLEST)
        left = 16 * place + 2 + _between(rng, 0, 2)
        pen.rectangle((left, floor - _UNIT * height, left + 9, floor), fill=COLOURS[name])
        heights[name] = height
    return {"heights": heights}


def _ask_bars(facts: Mapping[str, Any]) -> list[Question]:
    heights = facts["heights"]
    choices = range(1, _TALLEST + 1)

    def asked(text: str, names: Sequence[str], sign: str) -> Question:
        def work(read: Sequence[int]) -> tuple[str, str]:
            result = sum(read) if sign == "+" else read[0] - read[1]
            return sign.join(map(str, read)), str(result)

        answers = _numbers(_TALLEST * len(names)) if sign == "+" else _numbers(_TALLEST - 1)
        read = tuple(heights[name] for name in names)
        return Question(text, read, (choices,) * len(names), work, answers)

    names = list(COLOURS)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    found = [asked("sum?", names, "+")]
    for pair in pairs:
        found.append(asked("+".join(pair) + "?", pair, "+"))
        high, low = sorted(pair, key=lambda name: -heights[name])
        found.append(asked(f"{high}-{low}?", (high, low), "-"))
    return found


def _draw_angle(rng: np.random.Generator, pen: ImageDraw.ImageDraw) -> dict[str, Any]:
    x, y = (SIDE // 2 + _between(rng, -2, 2) for _ in range(2))
    base = 90 * _between(rng, 0, 1)
    names = [list(COLOURS)[i] for i in rng.permutation(len(COLOURS))[:2]]
    opens = 30 * (rng.permutation(6)[:2] + 1)
    length = _between(rng, 18, 21)
    pen.line(_toward(base, x, y, length), fill=_INK, width=3)
    rays = {name: base + int(more) for name, more in zip(names, opens, strict=True)}
    for name, turn in rays.items():
        pen.line(_toward(turn, x, y, length), fill=COLOURS[name], width=4)
    return {"base": base, "rays": rays}


def _ask_angle(facts: Mapping[str, Any]) -> list[Question]:
    return [
        Question(
            f"angle {name}?",
            (turn, facts["base"]),
            (range(30, 271, 30), (0, 90)),
            lambda read: (f"{read[0]}-{read[1]}", str(read[0] - read[1])),
            tuple(map(str, range(30, 181, 30))),
        )
        for name, turn in sorted(facts["rays"].items())
    ]


def _draw_shape(rng: np.random.Generator, pen: ImageDraw.ImageDraw) -> dict[str, Any]:
    wide, high = (_between(rng, 1, _TALLEST) for _ in range(2))
    triangle = bool(rng.random() < 0.5) and wide * high % 2 == 0
    x, y = (_between(rng, 0, 5) for _ in range(2))
    grid = [_UNIT * i for i in range(_TALLEST + 1)]
    for step in grid:
        pen.line((x + step, y, x + step, y + grid[-1]), fill=_LINES)
        pen.line((x, y + step, x + grid[-1], y + step), fill=_LINES)
    right, bottom = x + _UNIT * wide, y + _UNIT * high
    colour = list(COLOURS.values())[rng.integers(len(COLOURS))]
    if triangle:
        pen.polygon([(x, y), (right, y), (x, bottom)], fill=colour, outline=_INK)
    else:
        pen.rectangle((x, y, right, bottom), fill=colour, outline=_INK)
    return {"wide": wide, "high": high, "triangle": triangle}


def _ask_shape(facts: Mapping[str, Any]) -> list[Question]:
    read, sides = (facts["wide"], facts["high"]), (range(1, _TALLEST + 1),) * 2

    def asked(text: str, work: Callable[[int, int], tuple[str, int]], most: int) -> Question:
        def told(read: Sequence[int]) -> tuple[str, str]:
            steps, answer = work(*read)
            return steps, str(answer)

        return Question(text, read, sides, told, _numbers(most))

    if facts["triangle"]:
        return [
            asked("area?", lambda w, h: (f"{w}*{h}/2", w * h // 2), _TALLEST**2 // 2),
            asked("legs?", lambda w, h: (f"{w}+{h}", w + h), 2 * _TALLEST),
        ]
    return [
        asked("area?", lambda w, h: (f"{w}*{h}", w * h), _TALLEST**2),
        asked("around?", lambda w, h: (f"{w}+{h}+{w}+{h}", 2 * (w + h)), 4 * _TALLEST),
    ]


_DRAW: dict[str, Callable[[np.random.Generator, ImageDraw.ImageDraw], dict[str, Any]]] = {
    "count": _draw_count,
    "clock": _draw_clock,
    "bars": _draw_bars,
    "angle": _draw_angle,
    "shape": _draw_shape,
}
_ASK: dict[str, Callable[[Mapping[str, Any]], list[Question]]] = {
    "count": _ask_count,
    "clock": _ask_clock,
    "bars": _ask_bars,
    "angle": _ask_angle,
    "shape": _ask_shape,
}
