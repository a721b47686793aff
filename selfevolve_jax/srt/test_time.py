"""Test-time training: the problems to be answered are the ones that are trained on, without labels.

SRT (arXiv 2505.21444) lifts maj@32 on MATH-500 from .804 to .874 and on AMC from .65 to .725 so; TTRL
(arXiv 2504.16084) is the same loop with 64 votes of which 32 are trained on. The trainer needs nothing
new for it: the training rows are the held-out rows, and those of the test set alone.

What would let labels in by the back door is the caller's to leave out: `trainer.early_stop`, and
taking the best checkpoint in place of the last, choose by the accuracy on these very problems.
"""

from __future__ import annotations

from dataclasses import replace

from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.paired import PAIR
from selfevolve_jax.tasks.base import Row, Task


def at_test_time(task: Task) -> Task:
    """The task whose training rows are its held-out rows, ids kept, with gold taken away.

    The held-out rows stay as they are, so the figures before and after are those of the test set. A
    judge that wants gold is refused at its first batch, as on any unlabelled data. Other views of a
    problem (`judges.paired`) stay, without gold of their own.
    UserError where the task holds nothing out.
    """
    if not task.held_out:
        raise UserError(
            f"{task.name} has no held-out problems, and test-time training trains on those. Fix: "
            "--task.held-out-path, or --task.held-out-fraction above 0."
        )
    return replace(task, train=[_unlabelled(row) for row in task.held_out])


def _unlabelled(row: Row) -> Row:
    other = row.extra.get(PAIR)
    views = {PAIR: other.hide_gold()} if isinstance(other, Row) else {}
    return replace(row.hide_gold(), extra=views)
