"""The page of a DGM run: its arms, the lineage of its agents, and of each agent what was changed, why,
and what came of it. Self-contained HTML: no script, no network.

Reads RUN/config.json, RUN/summary.json (absent while the run goes on) and of each arm RUN/arms/ARM:
events.jsonl, agents.git and the folders that its events name. What agents and models wrote is shown as
text, cut to a size and escaped; of every text that is cut the page names the file. No jax.
"""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from selfevolve_jax import run_dir
from selfevolve_jax.dgm import events, intervals, staged
from selfevolve_jax.dgm.archive import Evaluation, Node
from selfevolve_jax.dgm.contract import Split, Usage
from selfevolve_jax.report import figures, tree_diff, untrusted
from selfevolve_jax.report.dgm_load import Arm, load, logs, rank, valid
from selfevolve_jax.report.lineage_figure import Drawn, lineage, scale
from selfevolve_jax.report.untrusted import shown

# Bytes of the page that each kind of text may take in all; shared out among the agents.
ATTEMPTS, DIFFS, TEXTS = 1_400_000, 1_000_000, 600_000
ATTEMPT = 1200  # bytes of an answer, and of an attempt's log
SPLITS: tuple[Split, ...] = ("train", "held_out", "transfer")


def is_dgm(folder: str | os.PathLike[str], config: Mapping[str, Any]) -> bool:
    """Whether a run directory with this configuration is DGM's, though it has no event yet."""
    return {"benchmark", "selection"} <= config.keys() or bool(logs(Path(folder)))


def write_page(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    refresh: int | None = None,
) -> epath.Path:
    """Writes the page of a run (report.html in its folder, or `out`, an .html file or a folder for it)
    and returns its path. refresh: seconds after which a browser loads it again.

    A run that goes on, or that has nothing yet, has a page too. UserError for a damaged log or
    summary, DiskError where the disk refuses.
    """
    path = epath.Path(folder if out is None else out)
    if path.suffix != ".html" or out is None:
        path = path / run_dir.REPORT
    page = render(Path(folder), refresh)
    with run_dir.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    run_dir.write_text_atomic(path, page)
    return path


def watch(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    seconds: int,
    wrote: Callable[[epath.Path], None] = lambda path: None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Writes the page whenever the run's events have grown, until the run is over or Ctrl-C; the last
    one does not refresh itself any more. wrote: told the path, once.

    A run is over when its summary is there and newer than its events; or, where it was stopped without
    one, when every arm's last event is "stopped" and three looks found nothing new.
    """
    folder = Path(folder)
    seen, quiet, told = None, 0, False
    try:
        while True:
            now = _sizes(folder)
            quiet = quiet + 1 if now == seen else 0
            over = _over(folder, quiet)
            if now != seen and not over:
                path, seen = write_page(folder, out, refresh=seconds), now
                if not told:
                    wrote(path)
                    told = True
            if over:
                break
            sleep(seconds)
    except KeyboardInterrupt:
        pass
    path = write_page(folder, out)
    if not told:
        wrote(path)


# -- the page


def render(folder: Path, refresh: int | None = None) -> str:
    """The page, as text."""
    arms = load(folder)
    config = run_dir.read_config(folder)["config"] if (folder / run_dir.CONFIG).exists() else {}
    count = max(1, sum(len(arm.nodes) for arm in arms))
    most = {
        "attempts": max(1, ATTEMPTS // (2 * ATTEMPT * count)),  # of an agent
        "diff": min(max(DIFFS // count, 1500), tree_diff.KEPT),
        "text": min(max(TEXTS // (3 * count), 300), 4000),
    }
    scores = [e for arm in arms for n in arm.nodes.values() if (e := _score(n)) is not None]
    highest = max([0.1, *(float(np.ceil(10 * score - 1e-9)) / 10 for score in scores)])
    views = [_arm(number, arm, folder, highest, most) for number, arm in enumerate(arms)]
    curves = [c for number, arm in enumerate(arms) if (c := _best_so_far(number, arm)) is not None]
    values = {
        "path": os.fspath(folder),
        "name": _named(config.get("benchmark")),
        "way": _named(config.get("selection")),
        "config": run_dir.flatten(config),
        "arms": views,
        "ended": bool(run_dir.summary_so_far(folder)),
        "curves": _chart("best", curves) if len(curves) > 1 else None,
        "highest": highest,
        "scale": scale(highest),
        "refresh": refresh,
        "arm_colours": figures.ARM_COLOURS,
    }
    template = _template()
    without = template.render(values, page_bytes="")
    return template.render(values, page_bytes=_size(len(without.encode())))


@functools.cache
def _template():
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("selfevolve_jax.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: shown(value) if type(value) is str else value,
    )
    environment.filters["size"] = _size
    environment.filters["seconds"] = _seconds
    return environment.get_template("dgm_run.html.j2")


def _arm(
    number: int, arm: Arm, folder: Path, highest: float, most: Mapping[str, int]
) -> dict[str, Any]:
    nodes = list(arm.nodes.values())
    line = set(_ancestry(arm.nodes, arm.best))
    drawn = [
        Drawn(
            *(node.id, node.parent, _score(node), _failed(node), node.id in line),
            shown(_told(node)),
            f"#{_anchor(number, node.id)}",
        )
        for node in nodes
    ]
    curve = _best_so_far(number, arm)
    evaluations = [e for node in nodes for e in node.evaluations]
    usage = sum((each.usage for each in (*nodes, *evaluations)), Usage())
    lost = [event for event in arm.events if event["event"] == "unavailable"]
    stopped = arm.events[-1] if arm.events and arm.events[-1]["event"] == "stopped" else None
    first, best = arm.nodes.get(0), arm.nodes.get(arm.best) if arm.best is not None else None
    return {
        "number": number,
        "name": arm.name,
        "said": _said_folder(arm, folder),
        "agents": len(nodes),
        "made": sum(node.tree is not None for node in nodes),
        "valid": sum(valid(node) for node in nodes),
        "figures": [
            (split, _measured(first, split), _measured(best, split), _gain(first, best, split))
            for split in SPLITS
        ],
        "best": arm.best,
        "best_anchor": None if arm.best is None else _anchor(number, arm.best),
        "usage": usage,
        "cpu_s": sum(e.cpu_s for e in evaluations),
        "wall_s": _lasted(arm.events),
        "evaluations": len(evaluations),
        "torn": arm.torn,
        "stopped": None if stopped is None else str(stopped.get("reason", "")),
        "lost": Counter(str(event.get("reason", ""))[:200] for event in lost).most_common(8),
        "lost_count": len(lost),
        "excluded": _excluded(arm.events),
        "lineage": lineage(drawn, arm.best, highest),
        "best_line": [(i, _anchor(number, i)) for i in reversed(_ancestry(arm.nodes, arm.best))],
        "curve": None if curve is None else _chart(f"best{number}", [curve]),
        "nodes": [_node(number, arm, node, folder, most) for node in nodes],
    }


def _node(
    number: int, arm: Arm, node: Node, folder: Path, most: Mapping[str, int]
) -> dict[str, Any]:
    said = _said_folder(arm, folder)

    def read(name: str) -> untrusted.Excerpt:
        return untrusted.read(arm.folder, node.files, name, most["text"], said)

    anchor = _anchor(number, node.id)
    parent = arm.nodes.get(node.parent) if node.parent is not None else None
    diff = None
    if node.tree is not None and parent is not None and parent.tree is not None:
        diff = tree_diff.diff(arm.folder / "agents.git", parent.tree, node.tree, most["diff"])
    # those that tell most come first, for not all may have room
    order = sorted(node.evaluations, key=lambda e: (e.solved, e.empty, _place(e)))
    chosen = sorted(order[: most["attempts"]], key=_place)
    anchors = {_place(e): f"{anchor}e{i}" for i, e in enumerate(chosen)}
    attempts = [
        {
            "anchor": anchors[_place(e)],
            "kind": _kind(e),
            "says": _said(e),
            "answer": untrusted.read(arm.folder, e.files, "answer.txt", ATTEMPT, said),
            "log": untrusted.read(arm.folder, e.files, "log.txt", ATTEMPT, said),
            "failing": (failing := [name for name, passed in e.tests.items() if not passed])[:12],
            "more_failing": len(failing[12:]),
        }
        for e in chosen
    ]
    return {
        "anchor": anchor,
        "id": node.id,
        "parent": None if node.parent is None else (node.parent, _anchor(number, node.parent)),
        "children": [
            (n.id, _anchor(number, n.id)) for n in arm.nodes.values() if n.parent == node.id
        ],
        "generation": node.generation,
        "failed": _failed(node),
        "is_best": node.id == arm.best,
        "tree": node.tree,
        "entry": node.entry[:200],
        "flags": [flag[:300] for flag in node.flags[:20]],
        "more_flags": max(0, len(node.flags) - 20),
        "reason": untrusted.cut(_why(node), 600),
        "diagnosis": untrusted.cut(node.diagnosis, most["text"]),
        "measured": [(s, figure) for s in SPLITS if (figure := _measured(node, s))],
        "usage": node.usage,
        "evaluation_usage": sum((e.usage for e in node.evaluations), Usage()),
        "seconds": node.seconds,
        "cpu_s": sum(e.cpu_s for e in node.evaluations),
        "diff": diff,
        "diff_lines": tree_diff.coloured(diff.text) if diff and diff.text else None,
        "raw": read("raw.txt"),
        "log": read("log.txt"),
        "made_by_hand": node.parent is None,
        "files": node.files,
        "parent_tree": parent.tree if parent is not None else None,
        "grid": _grid(node.evaluations, anchors),
        "attempts": attempts,
        "attempts_of": len(node.evaluations),
    }


def _grid(evaluations: Sequence[Evaluation], anchors: Mapping[Any, str]) -> list[Any]:
    """[(split, [(group, [(kind, share, title, anchor | None)])])], each in its own order."""
    grid = []
    for split in SPLITS:
        groups: dict[str, list[Any]] = {}
        for e in sorted((e for e in evaluations if e.split == split), key=_place):
            square = (_kind(e), round(100 * e.partial), _said(e), anchors.get(_place(e)))
            groups.setdefault(e.group, []).append(square)
        if groups:
            grid.append((split, sorted(groups.items())))
    return grid


def _place(e: Evaluation) -> tuple[int, str, str, int]:
    return SPLITS.index(e.split), e.group, e.task, e.seed


def _kind(e: Evaluation) -> str:
    if e.solved:
        return "solved"
    return "empty" if e.empty else "partial" if e.partial > 0 else "wrong"


def _said(e: Evaluation) -> str:
    kind = {"partial": f"partial {e.partial:.2f}", "empty": "no answer"}.get(_kind(e), _kind(e))
    tests = f", {sum(e.tests.values())} of {len(e.tests)} tests" if e.tests else ""
    reason = f": {e.reason[:100]}" if e.reason else ""
    return f"{e.task}, {kind}{tests}, {e.cpu_s:.1f} s CPU{reason}"


def _failed(node: Node) -> bool:
    """Grey: there is no agent, or none that ever answered. One that waits for its evaluation is not."""
    return node.tree is None or (bool(node.on("train")) and not valid(node))


def _why(node: Node) -> str:
    if node.reason or not _failed(node):
        return node.reason
    return "gave no answer to any task" if node.tree is not None else "no reason was given"


def _told(node: Node) -> str:
    score, count = _score(node), len(node.on("train"))
    if _failed(node):
        return f"agent {node.id}, failed: {_why(node)[:100]}"
    solved = "not evaluated yet" if score is None else f"{score:.3f} on train ({count} attempts)"
    return f"agent {node.id}, {solved}" + (f", from {node.entry[:60]}" if node.entry else "")


def _score(node: Node) -> float | None:
    on = node.on("train")
    return staged.score(on) if on else None


def _measured(node: Node | None, split: Split) -> dict[str, Any] | None:
    """What is known of an agent on a split."""
    on = node.on(split) if node is not None else []
    if not on:
        return None
    found = intervals.rate(on)
    return {
        **{"score": found.mean, "low": found.low, "high": found.high, "tasks": found.tasks},
        **{"partial": staged.score(on, "partial"), "attempts": len(on)},
    }


def _gain(first: Node | None, best: Node | None, split: Split) -> intervals.Interval | None:
    """Best less first, on the tasks of the split that both tried."""
    if first is None or best is None:
        return None
    before, after = first.on(split), best.on(split)
    if not {e.task for e in before} & {e.task for e in after}:
        return None
    return intervals.difference(before, after)


def _ancestry(nodes: Mapping[int, Node], agent: int | None) -> list[int]:
    """The agent, its parent, … up to the first."""
    line: list[int] = []
    while agent is not None and agent in nodes and agent not in line:
        line.append(agent)
        agent = nodes[agent].parent
    return line


def _best_so_far(number: int, arm: Arm) -> figures.Curve | None:
    """By agents made: the score on train of the best up to there, and its interval."""
    rows: list[tuple[float, ...]] = []
    best: tuple[tuple[int, float], tuple[float, ...]] | None = None
    for node in arm.nodes.values():
        if valid(node) and (best is None or rank(node) > best[0]):
            found = intervals.rate(node.on("train"))
            best = rank(node), (found.mean, found.low, found.high)
        if best is not None:
            rows.append((node.id, *best[1]))
    if not rows:
        return None
    return figures.Curve(shown(arm.name), number, *np.array(rows, float).T)


def _chart(name: str, curves: Sequence[figures.Curve]) -> dict[str, str]:
    svg = figures.line_chart(name, curves, fraction=False, along="agents made")
    return {"id": name, "svg": svg}


def _said_folder(arm: Arm, folder: Path) -> str:
    return arm.folder.relative_to(folder).as_posix()


def _anchor(arm: int, agent: int) -> str:
    return f"a{arm}-{agent}"


def _excluded(told: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(task or group, why) of what the benchmark left out, where a start of the run says so."""
    runs = [event.get("excluded") for event in told if event["event"] == "run"]
    last = next((found for found in reversed(runs) if isinstance(found, Mapping)), {})
    return [(str(name)[:100], str(why)[:300]) for name, why in last.items()]


def _lasted(told: Sequence[Mapping[str, Any]]) -> float:
    """Seconds from each start or resume to the last event before the next."""
    spans: list[list[float]] = []
    for event in told:
        if event["event"] == "run" or not spans:
            spans.append([event["time"], event["time"]])
        spans[-1][1] = max(spans[-1][1], event["time"])
    return sum(end - start for start, end in spans)


def _named(value: Any) -> str:
    """A configuration's benchmark or selection, which may be a name or hold one."""
    if isinstance(value, Mapping):
        value = value.get("name", value.get("way", ""))
    return "" if value is None else str(value)


def _size(count: int) -> str:
    """Bytes as B, kB or MB, of 1000."""
    for factor, unit in ((1_000_000, "MB"), (1000, "kB")):
        if count >= factor:
            return f"{count / factor:.{1 if count < 100 * factor else 0}f} {unit}"
    return f"{count} B"


def _seconds(count: float) -> str:
    if count < 120:
        return f"{count:.0f} s" if count >= 10 else f"{count:.1f} s"
    return f"{count / 60:.0f} min" if count < 7200 else f"{count / 3600:.1f} h"


# -- the run's files


def _sizes(folder: Path) -> tuple[Any, ...]:
    paths = [*logs(folder).values(), folder / run_dir.SUMMARY, folder / run_dir.CONFIG]
    return tuple((path, path.stat().st_size) for path in paths if path.exists())


def _over(folder: Path, quiet: int) -> bool:
    paths, end = logs(folder).values(), folder / run_dir.SUMMARY
    if end.exists():
        return all(path.stat().st_mtime <= end.stat().st_mtime for path in paths)
    if quiet < 3 or not paths:
        return False
    told = [events.read(path)[0] for path in paths]
    return all(each and each[-1]["event"] == "stopped" for each in told)
