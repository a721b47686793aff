"""`selfevolve synthesise`: a vision-language checkpoint writes questions about its own images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax

from launch.problems import Asked, Problems, load
from selfevolve_jax import run_dir, sampling_job, suites, synthetic
from selfevolve_jax.errors import UserError
from selfevolve_jax.filters import FilterConfig, check_votes
from selfevolve_jax.labels import read_labels
from selfevolve_jax.synthetic import READS, Mode
from selfevolve_jax.tasks.dataset import DataConfig, read_problems
from selfevolve_jax.tasks.prompts import Problem


@dataclass(frozen=True, kw_only=True)
class Synthesise(Problems):
    """Writes new questions about the images of the training problems, filters them, and keeps them in
    OUT/questions.jsonl, a data set without answers (--task.image-column image --task.answer-column
    None). The same command goes on where it was interrupted.

    checkpoint: a run's arm, one of its checkpoints/STEP, or its best; a Hugging Face folder or hub id.
    out: the folder; every text is kept there too. suite: by default the training rows of the run that
    the checkpoint belongs to; or a data set with an image column, as for `evaluate`. mode: direct, from
    the image alone; in_context, from an image, its question and its answer. labels: for in_context
    without gold, the folder of `label` on the same rows, whose majority answers are shown instead.
    per_image: texts a prompt. prompt: in place of the built-in one; in_context needs {question} and
    {answer} in it. system: the system turn of a chat prompt. reads: a regular expression whose last
    match in a text is the question. limit: only the first so many rows.

    votes: a folder of `label` on OUT/questions.jsonl. Then OUT/voted.jsonl is written as well: those
    whose vote lies between vote_low and vote_high.
    """

    out: str
    mode: Mode = "direct"
    labels: str | None = None
    per_image: int = 4
    prompt: str | None = None
    system: str | None = None
    reads: str = READS
    filters: FilterConfig = field(default_factory=FilterConfig)
    votes: str | None = None
    vote_low: float = 0.3
    vote_high: float = 0.95


def synthesise(options: Synthesise) -> dict[str, Any]:
    """Prints what was written and what each filter removed, and returns the summary."""
    if options.per_image < 1:
        raise UserError(f"per_image={options.per_image} must be at least 1.")
    if options.sampling.temperature == 0 and options.per_image > 1:
        raise UserError("sampling.temperature=0 writes one question again and again. Use 1.")
    if options.labels is not None and options.mode == "direct":
        raise UserError(
            f"labels={options.labels}: mode=direct reads no answer. Use --mode in_context, or "
            "--votes for the labels of the written questions."
        )
    synthetic.check_reads(options.reads)
    check_votes(options.vote_low, options.vote_high)
    sampling_job.check_folder(options.out, "questions")
    labels = None if options.labels is None else read_labels(options.labels)
    asked = load(_shown_answers(options), "train")
    bare = _bare(options, asked)
    if labels is not None:
        answers = synthetic.majority_answers(bare, labels)
    else:
        answers = {problem.id: problem.gold for problem in bare}
    planned = synthetic.plan(
        bare,
        asked.policy.tokenizer,
        mode=options.mode,
        answers=answers,
        prompt=options.prompt,
        chat=_chats(asked),
        system=options.system,
        vision=asked.policy.model.vision,
        images=asked.policy.images,
    )
    summary = synthetic.synthesise(
        asked.policy.params,
        asked.policy.model,
        asked.task,
        planned,
        options.out,
        per_image=options.per_image,
        checkpoint=asked.name,
        seed=options.seed,
        mesh=asked.mesh,
        rollout=options.rollout,
        sampling=options.sampling,
        max_new_tokens=asked.max_new_tokens,
        filters=options.filters,
        reads=options.reads,
        told={**asked.told, "labels": options.labels},
    )
    voted = None
    if options.votes is not None:
        voted = synthetic.keep_voted(
            options.out, options.votes, options.vote_low, options.vote_high
        )
    if jax.process_index() == 0:
        _tell(options, asked, summary, voted)
    return summary


def _tell(
    options: Synthesise, asked: Asked, summary: dict[str, Any], voted: dict[str, Any] | None
) -> None:
    out = run_dir.absolute(options.out)
    rows = f"{summary['sources']} prompts, {options.per_image} texts each, {options.mode}"
    print(f"{asked.name}: {rows}")
    for reason, n in summary["skipped"].items():
        print(f"source rows left out, {reason}: {n}")
    for name, n in summary["removed"].items():
        print(f"removed, {name}: {n}")
    print(f"kept {summary['kept']} of {summary['written']}: {out / synthetic.QUESTIONS}")
    if voted is not None:
        for name, n in voted["removed"].items():
            print(f"removed by the vote, {name}: {n}")
        print(f"kept {voted['kept']} of {voted['questions']}: {out / synthetic.VOTED}")


def _shown_answers(options: Synthesise) -> Synthesise:
    """A suite's gold is read where it is shown to the model, and nowhere else."""
    if options.mode == "in_context" and options.labels is None:
        if options.suite is not None and options.answer_column is None:
            raise UserError(
                "mode=in_context shows the model an answer, and answer_column=None leaves none. Fix: "
                "--labels, the folder of `selfevolve label` on these rows."
            )
        return options
    return replace(options, answer_column=None)


def _bare(options: Synthesise, asked: Asked) -> Sequence[Problem]:
    """The training problems without suffix and template, those held out left out."""
    wanted = {row.id for row in asked.rows}
    if isinstance(asked.config, DataConfig):
        found = read_problems(asked.config, suites.form(options.suite))
        return [problem for problem in found if problem.id in wanted]
    return synthetic.bare_problems(asked.rows, asked.policy.tokenizer)


def _chats(asked: Asked) -> bool:
    if isinstance(asked.config, DataConfig):
        return asked.config.chat
    return bool(getattr(asked.policy.tokenizer, "chat_template", None))
