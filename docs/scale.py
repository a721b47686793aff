"""Remakes the table of docs/scale.md from the lines that `selfevolve compile --json FILE` wrote.

    python docs/scale.py FILE

A recipe's programs may have been compiled by several calls (--only); what a later line compiled counts.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("scale.md")
BEGIN, END = "<!-- table: docs/scale.py -->", "<!-- end of table -->"
GIB = 1 << 30


def read(lines: list[str]) -> list[dict[str, Any]]:
    """One entry for each recipe and topology, in the order in which they first come."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for line in filter(None, map(str.strip, lines)):
        told = json.loads(line)
        options = without(told["typed"], ("--only", "--json"))
        held = found.setdefault(
            (told["recipe"], told["topology"], " ".join(options)), told | {"typed": options}
        )
        for name, program in told["programs"].items():
            if "needs" in program or "needs" not in held["programs"].get(name, {}):
                held["programs"][name] = program
    return list(found.values())


def without(typed: list[str], options: tuple[str, ...]) -> list[str]:
    """What was typed, without these options and their values."""
    kept, dropping = [], False
    for word in typed:
        dropping = word in options if word.startswith("--") else dropping
        if not dropping:
            kept.append(word)
    return kept


def table(entries: list[dict[str, Any]]) -> str:
    head = (
        *("recipe", "topology (devices)", "mesh", "HBM a chip, worst program", "update"),
        *("sampling", "parameters + optimiser", "cache", "sent a chip and step"),
        *("model FLOPs a step", "step, at least", "MFU, at most"),
    )
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for e in entries:
        needs = {n: p["needs"] for n, p in e["programs"].items() if "needs" in p}
        worst = max(needs, key=needs.__getitem__)
        sampling = max((needs[n] for n in needs if n not in ("update", "score")), default=0)
        sent: dict[str, float] = {}
        for program in e["programs"].values():
            for kind, n in program.get("sent", {}).items():
                sent[kind] = sent.get(kind, 0) + n
        shown = ", ".join(f"{kind} {n / 1e9:,.0f} GB" for kind, n in sent.items() if n > 5e8)
        seconds = sum(bound(p) for p in e["programs"].values())
        asked = sum(p["model_flops"] for p in e["programs"].values())
        mesh = "×".join(f"{k} {n}" for k, n in e["mesh"].items() if n > 1)
        held = e["held"]
        cells = (
            f"`{e['recipe']}`",
            f"{e['topology']} ({e['devices']})",
            mesh,
            f"{needs[worst] / GIB:.2f} of {e['hbm'] / GIB:.2f} GiB ({worst})",
            gib(needs.get("update")),
            gib(sampling),
            gib(held["parameters"] + held["optimiser"]),
            gib(held["cache"]),
            shown,
            f"{asked:.1e}",
            f"{seconds:.0f} s",
            f"{asked / seconds / e['devices'] / e['peak']:.0%}",
        )
        rows.append("| " + " | ".join(cells) + " |")
    made = "\n\n".join(f"```\nselfevolve {shlex.join(e['typed'])}\n```" for e in entries)
    parts = "\n".join(program_rows(e) for e in entries)
    return "\n".join(rows) + "\n\nThe commands:\n\n" + made + "\n\n" + PROGRAMS + parts


PROGRAMS = """The programs of a step, seconds at the least; a time is the largest of its three parts:

| recipe, topology | program | needs | compute | memory | links | compiled in |
|---|---|---|---|---|---|---|
"""


def program_rows(e: dict[str, Any]) -> str:
    rows = []
    for name, p in e["programs"].items():
        took = f"{p['compile_seconds']} s" if "needs" in p else "not compiled"
        cells = (
            f"{e['recipe']}, {e['topology']}",
            name,
            gib(p.get("needs")),
            *(f"{p[part]:.2f} s" for part in ("compute", "memory", "links")),
            took,
        )
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def bound(program: dict[str, Any]) -> float:
    return max(program[part] for part in ("compute", "memory", "links"))


def gib(n: float | None) -> str:
    return "" if n is None else f"{n / GIB:.2f} GiB"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    made = table(read(Path(sys.argv[1]).read_text().splitlines()))
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}")


if __name__ == "__main__":
    main()
