"""What the arms `direct` and `in_context` train on: questions that the base policy writes itself, about
the pictures of the task's training rows (MM-UPT, arXiv 2505.22453, section 3.3).

    RUN/questions/MODE                     as `synthetic.synthesise` keeps it
    RUN/questions/MODE/votes, voted.json   where a vote filters: the base's answers, and the counts
    RUN/labels                             for in_context: the base's answers to the source's questions

No gold is read on the way: In-Context shows the majority answer of the base, where the paper's showed
that of the data set as far as is known (`selfevolve synthesise` offers both).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from selfevolve_jax import checkpoint, run_dir, sampling_job, synthetic
from selfevolve_jax.errors import UserError
from selfevolve_jax.filters import filter_votes
from selfevolve_jax.labels import Label, label_rows
from selfevolve_jax.mm_upt.drawn import module
from selfevolve_jax.mm_upt.recipe import MMUPTRecipe
from selfevolve_jax.starting_point import CheckpointConfig
from selfevolve_jax.synthetic import Mode, Plan
from selfevolve_jax.tasks.base import Row, Task
from selfevolve_jax.tasks.dataset import DataConfig, load_task, read_problems
from selfevolve_jax.tasks.prompts import IMAGE_MARKER, Problem

# A drawn picture's question is the whole of a text, up to its mark.
_READS = r"^(.+\?)$"


def written(
    recipe: MMUPTRecipe,
    mode: Mode,
    task: Task,
    policy: checkpoint.Policy,
    mesh: Mesh,
    folder: epath.Path,
    say: Callable[[str], None],
) -> list[Row]:
    """The rows to train on, without gold, in the form of the task's own rows; their ids go on where
    those of the task end. Of `folder`, the run's, see above.

    Pictures that a held-out row shows are not written about. Called again it goes on where it was
    killed, and to the same bytes. say: gets one line of what was written, kept and removed.
    UserError where there is nothing to write from, or nothing that was written is left.
    """
    options, place = recipe.questions, folder / "questions" / mode
    rows, shared = _source(task, options.images)
    problems = _bare(recipe, rows, task)
    answers: Mapping[int, str | None] = {}
    if mode == "in_context":
        labels = _vote(recipe, task, policy, mesh, rows, folder / "labels")
        answers = _shown(synthetic.majority_answers(problems, labels), task)
    planned = _plan(recipe, mode, problems, answers, task, policy)
    if shared:
        planned = replace(planned, skipped={**planned.skipped, "held_out_image": shared})
    summary = _write(recipe, planned, task, policy, mesh, place)
    # A broadcast, so that no process reads before the first has written.
    sampling_job.agreed([True])
    found, too_long = _rows(recipe, task, policy, place)
    removed = dict(summary["removed"])
    if too_long:
        removed["prompt_too_long"] = too_long
    if options.votes is not None:
        voted = _vote(recipe, task, policy, mesh, found, place / "votes")
        found, by_vote = _within(found, voted, options.votes, place)
        removed |= by_vote
    say(
        f"{mode}: {summary['written']} texts from {summary['sources']} prompts, {len(found)} questions "
        f"kept{_counted('; removed', removed)}{_counted('; source rows left out', summary['skipped'])}"
    )
    return found


def _counted(what: str, counts: Mapping[str, int]) -> str:
    named = ", ".join(f"{n} {reason}" for reason, n in counts.items())
    return f"{what}: {named}" if named else ""


def _source(task: Task, limit: int | None) -> tuple[list[Row], int]:
    """The training rows to write from, without gold, and how many were left out because a held-out row
    shows one of their pictures: a question about it could be the held-out one."""
    held_out = {name for row in task.held_out for name in _files(row)}
    rows = [row.hide_gold() for row in task.train if held_out.isdisjoint(_files(row))]
    if not rows:
        raise UserError(
            f"{task.name}: the held-out rows show the pictures of all {len(task.train)} training rows, "
            "so no question can be written. Fix: hold out other pictures, as with "
            "--task.held-out-path."
        )
    return rows[:limit], len(task.train) - len(rows)


def _files(row: Row) -> Iterable[str]:
    """What tells the row's image files apart, wherever they are."""
    for image in row.images:
        data = image if isinstance(image, bytes) else epath.Path(image).read_bytes()
        yield hashlib.sha256(data).hexdigest()


def _bare(recipe: MMUPTRecipe, rows: Sequence[Row], task: Task) -> list[Problem]:
    """The rows' questions without suffix and template. The data set's answers are not read."""
    if not isinstance(recipe.task, DataConfig):
        return synthetic.bare_problems(rows, task.tokenizer)
    wanted = {row.id for row in rows}
    unlabelled = replace(recipe.task, answer_column=None, answer_pattern=None)
    return [problem for problem in read_problems(unlabelled) if problem.id in wanted]


def _vote(
    recipe: MMUPTRecipe,
    task: Task,
    policy: checkpoint.Policy,
    mesh: Mesh,
    rows: Sequence[Row],
    folder: epath.Path,
) -> dict[int, Label]:
    """The base's vote on rows, with as many samples as a training step has."""
    trainer = recipe.trainer
    return label_rows(
        policy.params,
        policy.model,
        task,
        rows,
        folder,
        samples=trainer.samples_per_prompt,
        seed=recipe.seed,
        mesh=mesh,
        rollout=trainer.rollout,
        sampling=trainer.sampling,
        max_new_tokens=trainer.max_new_tokens,
    )


def _shown(answers: Mapping[int, str | None], task: Task) -> dict[int, str | None]:
    """The answers that can stand in a prompt: those that a tokenizer would not read as an image's
    place or a mark of the template."""
    marks = (IMAGE_MARKER, *task.tokenizer.all_special_tokens)
    return {i: a for i, a in answers.items() if a and not any(mark in a for mark in marks)}


def _plan(
    recipe: MMUPTRecipe,
    mode: Mode,
    problems: Sequence[Problem],
    answers: Mapping[int, str | None],
    task: Task,
    policy: checkpoint.Policy,
) -> Plan:
    data = recipe.task if isinstance(recipe.task, DataConfig) else None
    taught = None
    if not isinstance(recipe.task, DataConfig):
        drawn = module(recipe.task)
        taught = drawn.DIRECT if mode == "direct" else drawn.IN_CONTEXT
    return synthetic.plan(
        problems,
        task.tokenizer,
        mode=mode,
        answers=answers,
        prompt=taught,
        chat=True,  # a data set's images need it, and the pictures task has a template
        system=data.system if data else None,
        vision=policy.model.vision,
        images=task.images,
    )


def _write(
    recipe: MMUPTRecipe,
    planned: Plan,
    task: Task,
    policy: checkpoint.Policy,
    mesh: Mesh,
    place: epath.Path,
) -> dict[str, Any]:
    options, trainer = recipe.questions, recipe.trainer
    given = recipe.policy.path if isinstance(recipe.policy, CheckpointConfig) else None
    return synthetic.synthesise(
        policy.params,
        policy.model,
        task,
        planned,
        place,
        per_image=options.per_image,
        checkpoint=given or "the recipe's base",
        seed=recipe.seed,
        mesh=mesh,
        rollout=trainer.rollout,
        sampling=options.sampling,
        max_new_tokens=options.max_new_tokens or trainer.max_new_tokens,
        filters=options.filters,
        reads=synthetic.READS if isinstance(recipe.task, DataConfig) else _READS,
    )


def _rows(
    recipe: MMUPTRecipe, task: Task, policy: checkpoint.Policy, place: epath.Path
) -> tuple[list[Row], int]:
    """questions.jsonl in the form of the task's rows, and how many prompts were too long. Random
    numbers go by the id, and the base may vote on the source's rows and on these: none comes twice."""
    data = recipe.task if isinstance(recipe.task, DataConfig) else DataConfig("", chat=True)
    new = DataConfig(
        path=str(place / synthetic.QUESTIONS),
        held_out_fraction=0.0,
        answer_column=None,
        image_column="image",
        suffix=data.suffix,
        chat=True,
        system=data.system,
        max_prompt_tokens=data.max_prompt_tokens,
    )
    found = load_task(
        new, task.tokenizer, task.stop_tokens, vision=policy.model.vision, images=task.images
    )
    lines = (place / synthetic.QUESTIONS).read_bytes().splitlines()
    # As the task has the images, so that they are in memory once, and a run may be moved.
    shown = {row.id: row.images for row in task.train}
    first = 1 + max(row.id for row in (*task.train, *task.held_out))
    rows = [
        replace(row, id=first + row.id, images=shown[json.loads(lines[row.id])["source_row"]])
        for row in found.train
    ]
    return rows, found.counts["prompt_too_long"]


def _within(
    rows: Sequence[Row],
    labels: Mapping[int, Label],
    votes: tuple[float, float],
    place: epath.Path,
) -> tuple[list[Row], dict[str, int]]:
    """The rows whose vote lies within, and what was removed by reason, which voted.json keeps."""
    low, high = votes
    ids, removed = filter_votes([(row.id, row.prompt) for row in rows], labels, low, high)
    if not ids:
        raise UserError(
            f"no question of {len(rows)} in {place} has a vote between questions.vote_low={low} and "
            f"questions.vote_high={high}: {removed}. Widen them, with another --run-dir."
        )
    if jax.process_index() == 0:
        counts = {"questions": len(rows), "kept": len(ids), "removed": removed}
        run_dir.write_json_atomic(place / synthetic.VOTES, {"low": low, "high": high, **counts})
    kept = set(ids)
    return [row for row in rows if row.id in kept], removed
