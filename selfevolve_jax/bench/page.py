"""The figures of docs/benchmarks.md, which stand between two marks in what a person wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfevolve_jax.bench.measure import Row, markdown
from selfevolve_jax.errors import UserError

BEGIN, END = "<!-- selfevolve bench -->", "<!-- end -->"


def figures(rows: Sequence[Row], about: Mapping[str, Any], command: str) -> str:
    """The table, what missed its bar and by how much, what was not measured and why, and on what."""
    versions = dict(about["versions"])
    told = []
    for row in rows:
        versions |= {k: v for k, v in row.notes.items() if isinstance(v, str)}
        found = "; ".join(f"{k} {_said(v)}" for k, v in row.notes.items() if not isinstance(v, str))
        if found:
            told.append(f"- {row.what} against {row.against}: {found}.")
    parts = [
        BEGIN,
        f"`{command}`, {about['processor']}, {about['cores']} cores, {about['system']}, Python "
        f"{about['python']}; {', '.join(f'{k} {v}' for k, v in versions.items())}. Each figure is the "
        "median of the rounds, with the lowest and highest.",
        markdown(rows),
        *[_missed(row) for row in rows if row.met is False],
        *[f"{row.what} against {row.against}: not measured. {row.why}." for row in rows if row.why],
        "\n".join(told),
        END,
    ]
    return "\n\n".join(part for part in parts if part)


def _missed(row: Row) -> str:
    assert row.ratio is not None
    return (
        f"Not met: {row.what} against {row.against} is at {row.ratio:.2f} where the bar is "
        f"{row.bar:.2f}."
    )


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_said(v)}" for k, v in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def put(text: str, block: str, name: str) -> str:
    """`text` with `block` in place of what stood between the marks; the block alone where there is no
    text yet. UserError for a text without the marks."""
    if not text:
        return block + "\n"
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UserError(
            f"{name} has no lines {BEGIN} and {END}. Add them where the figures belong."
        )
    return head + block + tail
