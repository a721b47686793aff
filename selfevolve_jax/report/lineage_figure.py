"""The lineage of a run's agents as inline SVG: the first agent left, its descendants to its right, each
a pill with its number and score, coloured by score, that leads to its section.

A node's first child is on its own row and the others are below, so the best lineage, whose nodes come
first, is a straight line on top; no two lines cross. Children that failed are leaves, and two of one
parent share the room of a pill, in grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 1040  # pixels that a page gives it; deeper trees are scrolled
ROW, PILL_HEIGHT = 24, 18
PILL, FAILED_PILL = 56, 26  # pixels wide
LEAST_GAP, MOST_GAP = 14, 48  # between a pill and its child's
FAILED_A_ROW = 2
EDGE = 10  # pixels around it all
COLOURS = 9  # of the legend's scale


@dataclass(frozen=True)
class Drawn:
    """score: in [0, 1], None where it was not evaluated. failed: no child came of it, or no valid one.
    on_best: it is the best agent or an ancestor of it. title: shown when it is pointed at. href: of its
    section."""

    id: int
    parent: int | None
    score: float | None
    failed: bool
    on_best: bool
    title: str
    href: str


def lineage(agents: Sequence[Drawn], best: int | None, highest: float) -> Markup:
    """The tree. best: the agent that is marked. highest: the score of the scale's far end."""
    places = _places(agents)
    known = {agent.id: agent for agent in agents}
    depth = max((column for column, _, _ in places.values()), default=0)
    gap = (WIDTH - (depth + 1) * PILL) / max(depth, 1)
    step = PILL + min(max(gap, LEAST_GAP), MOST_GAP)

    def box(agent: int) -> tuple[float, float, int]:
        """Left edge, middle's height, width."""
        column, row, packed = places[agent]
        x, y = EDGE + column * step, EDGE + PILL_HEIGHT / 2 + row * ROW
        return (x, y, PILL) if packed is None else (x + packed * (FAILED_PILL + 4), y, FAILED_PILL)

    lines, pills = [], []
    # the best lineage last, so that it lies on top
    for agent in sorted(agents, key=lambda a: (a.on_best, a.id)):
        x, y, width = box(agent.id)
        if agent.parent in known and places[agent.id][2] in (None, 0):
            px, py, pwidth = box(agent.parent)
            start, trunk = px + pwidth, px + pwidth + (step - PILL) / 2
            path = f"M{start:g} {py:g}H{x:g}"
            if y != py:
                path = f"M{start:g} {py:g}H{trunk:g}V{y - 6:g}q0 6 6 6H{x:g}"
            lines.append(
                Markup('<path class="{}" d="{}"/>').format("best" if agent.on_best else "", path)
            )
        pills.append(_pill(agent, x, y, width, agent.id == best, highest))
    right = max((box(a.id)[0] + box(a.id)[2] for a in agents), default=0) + EDGE
    bottom = max((row for _, row, _ in places.values()), default=0) * ROW + PILL_HEIGHT + 2 * EDGE
    return Markup(
        '<svg class="lineage" width="{0:g}" height="{1:g}" viewBox="0 0 {0:g} {1:g}" role="img" '
        'aria-label="Lineage of {2} agents">{3}{4}</svg>'
    ).format(right, bottom, len(agents), Markup("").join(lines), Markup("").join(pills))


def _pill(agent: Drawn, x: float, y: float, width: int, best: bool, highest: float) -> Markup:
    kinds = ["failed" if agent.failed else "unknown" if agent.score is None else ""]
    kinds += ["best"] * agent.on_best + ["top"] * best
    style = text = ""
    if not agent.failed and agent.score is not None:
        fill, ink = colour(agent.score, highest)
        style = Markup(' style="fill:{}"').format(fill)
        text = Markup(' style="fill:{}"').format(ink)
    says = f"{agent.id}"
    if width == PILL:
        says += " –" if agent.score is None else f" {agent.score:.2f}".replace(" 0.", " .")
    return Markup(
        '<a href="{}" class="{}"><title>{}</title>'
        '<rect x="{:g}" y="{:g}" width="{}" height="{}" rx="9"{}/>'
        '<text x="{:g}" y="{:g}"{}>{}</text></a>'
    ).format(
        *(agent.href, " ".join(filter(None, kinds)), agent.title),
        *(x, y - PILL_HEIGHT / 2, width, PILL_HEIGHT, style),
        *(x + width / 2, y + 3.5, text, says),
    )


def _places(agents: Sequence[Drawn]) -> Mapping[int, tuple[int, int, int | None]]:
    """Agent -> (column, row, its place among the failed that share a pill's room, None for others).

    A subtree lies as high as what is above it allows: in each column it begins below what is there. So
    no line crosses the trunk that a node's children hang from, which ends at the last of them.
    """
    known = {agent.id for agent in agents}
    children: dict[int | None, list[Drawn]] = {}
    for agent in sorted(agents, key=lambda a: a.id):
        children.setdefault(agent.parent if agent.parent in known else None, []).append(agent)
    failed_leaves = {
        a.id for a in agents if a.failed and a.id not in children and a.parent in known
    }
    size: dict[int, int] = {}
    # a chain of a thousand agents is a run too, so nothing here is recursive
    order = list(children.get(None, []))
    for agent in order:
        order += children.get(agent.id, [])
    for agent in reversed(order):
        size[agent.id] = 1 + sum(size[child.id] for child in children.get(agent.id, []))

    def groups(agent: int) -> list[tuple[int, ...]]:
        """Its children from top to bottom; failed ones share."""
        below = children.get(agent, [])
        grey = [a.id for a in below if a.id in failed_leaves]
        others = [a for a in below if a.id not in failed_leaves]
        others.sort(key=lambda a: (not a.on_best, size[a.id], a.id))
        leaves = sum(a.on_best or size[a.id] == 1 for a in others)
        single: list[tuple[int, ...]] = [(a.id,) for a in others]
        packed = [tuple(grey[i : i + FAILED_A_ROW]) for i in range(0, len(grey), FAILED_A_ROW)]
        return single[:leaves] + packed + single[leaves:]

    columns = {agent.id: 0 for agent in children.get(None, [])}
    for agent in order:
        columns |= {child.id: columns[agent.id] + 1 for child in children.get(agent.id, [])}
    below: dict[int, list[tuple[tuple[int, ...], int]]] = {}  # agent -> (group, rows under it)
    outline: dict[int, dict[int, tuple[int, int]]] = {}  # column -> its first and last row
    for agent in reversed(order):
        taken, rows = {columns[agent.id]: (0, 0)}, []
        for group in groups(agent.id):
            theirs = outline[group[0]]
            row = max([0, *(taken[c][1] + 1 - top for c, (top, _) in theirs.items() if c in taken)])
            rows.append((group, row))
            for c, (top, bottom) in theirs.items():
                taken[c] = (min(taken.get(c, (top + row,))[0], top + row), bottom + row)
        below[agent.id], outline[agent.id] = rows, taken
        for child in children.get(agent.id, []):
            del outline[child.id]
    places: dict[int, tuple[int, int, int | None]] = {}
    start = 0
    for root in children.get(None, []):
        places[root.id] = (0, start, None)
        start += 1 + max(bottom for _, bottom in outline[root.id].values())
    for agent in order:
        column, row, _ = places[agent.id]
        for group, down in below[agent.id]:
            packed = group[0] in failed_leaves
            for place, child in enumerate(group):
                places[child] = (column + 1, row + down, place if packed else None)
    return places


def colour(score: float, highest: float) -> tuple[str, str]:
    """(colour of a score, colour of text on it): viridis, which people with colour blindness read."""
    from matplotlib import colormaps

    red, green, blue, _ = colormaps["viridis"](min(score / highest, 1.0) if highest > 0 else 0.0)
    fill = "#{:02x}{:02x}{:02x}".format(*(round(255 * part) for part in (red, green, blue)))
    light = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    return fill, "#ffffff" if light < 0.18 else "#000000"


def scale(highest: float) -> str:
    """The colours from 0 to `highest`, as a CSS gradient."""
    steps = [colour(highest * i / (COLOURS - 1), highest)[0] for i in range(COLOURS)]
    return f"linear-gradient(90deg, {', '.join(steps)})"
