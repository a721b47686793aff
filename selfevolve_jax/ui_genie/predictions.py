"""An agent's answers on AndroidControl's rows, a part at a time, in a folder from which a killed job
goes on.

    FOLDER/config.json         what was asked: weights, split, setting, prompt style
    FOLDER/part_00000.jsonl    the first rows, one line each: the text, what it was read as, the truth
    FOLDER/summary.json        `evaluators.report`, once all rows were asked

Each part is written whole or not at all, and one that is there is not asked again, but held against the
data: figures never rest on another split's truth. Of the data no more is in memory than a part and an
episode; what was asked before is read past, as a gzipped shard has no other way to what comes after.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import jax
from etils import epath

from selfevolve_jax import run_dir, sampling_job
from selfevolve_jax.errors import UserError
from selfevolve_jax.images import load_image
from selfevolve_jax.ui_genie import actions, android_control, evaluators, trajectory
from selfevolve_jax.ui_genie.actions import Failure
from selfevolve_jax.ui_genie.android_control import Row
from selfevolve_jax.ui_genie.contract import View

KIND = "AndroidControl predictions"
# What a kill may cost, and the rows asked at once at most.
ROWS_A_PART = 64

# The texts of views, whose numbers in the data these are.
Ask = Callable[[Sequence[View], Sequence[int]], Sequence[str]]


def evaluate(
    rows: Iterable[Row],
    ask: Ask,
    folder: epath.PathLike | None,
    request: dict[str, Any],
    counts: Counter[str],
) -> dict[str, Any]:
    """`evaluators.report` of an agent's answers to all rows, with the data's own counts as "data".

    ask: is called part by part, with rows that the folder does not have yet. folder: keeps what was
    asked and answered; None keeps nothing. request: for its config.json; "told" in it may differ when
    the job is continued. counts: of `android_control.split_rows`, which has counted once rows end.
    UserError for a folder in use for something else or another request, a part that is damaged or of
    other data, and no rows; DiskError.
    """
    main = jax.process_index() == 0
    if folder is not None:
        folder = run_dir.absolute(folder)
        sampling_job.open_folder(folder, KIND, {"kind": KIND} | request)
        if sampling_job.agreed([(folder / run_dir.SUMMARY).exists()])[0]:
            return run_dir.read_summary(folder)
    truths, predictions = [], []
    for number, part in enumerate(_parts(rows)):
        path = None if folder is None else folder / f"part_{number:05d}.jsonl"
        if path is not None and sampling_job.agreed([path.exists()])[0]:
            texts = _read(path, part)
        else:
            views = [view_of(row) for row in part]
            try:
                texts = ask(views, range(len(truths), len(truths) + len(part)))
            except UserError:
                _check_screenshots(part)  # whose message would not say which row's
                raise
            if path is not None and main:
                records = [record(row, text) for row, text in zip(part, texts, strict=True)]
                trajectory.write_lines(path, records)
        for row, text in zip(part, texts, strict=True):
            key = (row.episode_id, row.step)
            truths.append((key, android_control.truth(row)))
            predictions.append((key, actions.parse(text, row.frame)))
        if main:
            print(f"predictions: {len(truths)} rows, {counts['episodes']} episodes", flush=True)
    if not truths:
        raise UserError(
            f"there is no row to predict: none of the split's {counts['missing_episodes']} episodes is "
            f"in the shards. Fix: copy all of them from {android_control.FOLDER}."
        )
    report = evaluators.report(predictions, truths) | {"data": dict(counts)}
    if folder is not None and main:
        run_dir.write_summary(folder, report)
    return report


def view_of(row: Row) -> View:
    """What an agent may look at before a row's step."""
    return View(row.asked, row.history, (row.screenshot,), row.frame, row.elements)


def record(row: Row, text: str) -> dict[str, Any]:
    """A prediction as it is kept, as JSON values: {"episode_id", "step", "asked", "text" (all that was
    written), "action" (`actions.as_record`, null where the text is none), "failure" ({"kind",
    "detail"}, null where it is one), "truth", "box", "frame", "screen"}."""
    read = actions.parse(text, row.frame)
    failed = isinstance(read, Failure)
    return run_dir.jsonable(
        {
            "episode_id": row.episode_id,
            "step": row.step,
            "asked": row.asked,
            "text": text,
            "action": None if failed else actions.as_record(read),
            "failure": asdict(read) if failed else None,
            "truth": actions.as_record(row.action),
            "box": row.box,
            "frame": row.frame,
            "screen": row.screen,
        }
    )


def _parts(rows: Iterable[Row]) -> Iterator[list[Row]]:
    left = iter(rows)
    while part := list(itertools.islice(left, ROWS_A_PART)):
        yield part


def _check_screenshots(part: Sequence[Row]) -> None:
    """UserError naming the row whose screenshot cannot be looked at."""
    for row in part:
        try:
            load_image(row.screenshot)
        except UserError as error:
            raise UserError(
                f"episode {row.episode_id}, step {row.step}: {error} The shard that has it is damaged, "
                f"or was so when it was made. Fix: copy it again from {android_control.FOLDER}."
            ) from error


def _read(path: epath.Path, part: Sequence[Row]) -> list[str]:
    """The texts of a part, which is what would be written of these rows and texts."""
    fix = "remove it, and its rows are asked again"
    lines = list(trajectory.read_lines(path, fix))
    texts = [trajectory.take(where, line, "text", str) for where, line in lines]
    found = [line for _, line in lines]
    if len(found) != len(part) or found != [
        record(row, text) for row, text in zip(part, texts, strict=True)
    ]:
        raise UserError(
            f"{path} is damaged or of other data: it does not hold the rows from episode "
            f"{part[0].episode_id}, step {part[0].step}, to episode {part[-1].episode_id}, step "
            f"{part[-1].step}. Fix: {fix}."
        )
    return texts
