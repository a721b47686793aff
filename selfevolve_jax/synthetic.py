"""Questions that a vision-language model writes itself, from its own training images (MM-UPT, arXiv
2505.22453, section 3.3): In-Context Synthesizing reads an image, its question and an answer; Direct
Synthesizing reads the image alone. The paper prints neither prompts nor filters; these are our own.

    FOLDER/config.json, part_00000.jsonl …   as `sampling_job` keeps them: every text that was sampled
    FOLDER/questions.jsonl                   what the filters left, a question a line, with its origin
    FOLDER/images/                           images that the source held as bytes
    FOLDER/summary.json                      the filters and what each removed
    FOLDER/voted.jsonl, voted.json           the same after the vote's filter (`keep_voted`)

questions.jsonl is a data set: DataConfig(path, image_column="image", answer_column=None, chat=True).
No answer is in it. They come from the vote.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
from etils import epath
from jax.sharding import Mesh

from models.config import ModelConfig, VisionConfig
from models.decoder import Params
from selfevolve_jax import run_dir, sampling_job
from selfevolve_jax.errors import UserError
from selfevolve_jax.filters import Candidate, FilterConfig, filter_questions, filter_votes
from selfevolve_jax.images import ImageConfig
from selfevolve_jax.labels import LABELS, Label, read_labels
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.tasks.base import AnswerSpec, Row, Task
from selfevolve_jax.tasks.prompts import IMAGE_MARKER, Problem, tokenize_rows

Mode = Literal["direct", "in_context"]
QUESTIONS, VOTED, VOTES = "questions.jsonl", "voted.jsonl", "voted.json"
# How the question is read out of a text.
READS = r"(?s)<question>(.*?)</question>"
_RULES = """\
- it can be answered from this image alone, by somebody who sees only the image and your question;
- it takes more than one step, such as reading values off the image and combining them;
- it has one short answer that can be checked: a number, an expression, a word, or the letter of one \
of the choices that you list;
- it relies on nothing that the image does not show, unless your question states it.
Do not solve it. Write the question between <question> and </question>, and nothing after it."""
PROMPTS: dict[Mode, str] = {
    "direct": "Look closely at the image, and make up a question about it for a test of mathematical "
    f"reasoning, such that\n{_RULES}",
    "in_context": "This question about the image has been asked before:\n\nQuestion: {question}\n"
    "Answer: {answer}\n\nMake up a new question about the same image for a test of mathematical "
    "reasoning, such that\n- it asks for something else, and is neither the old question in other "
    f"words nor the old one with other numbers;\n{_RULES}",
}


@dataclass(frozen=True)
class Plan:
    """What a model is asked to write from. rows: one prompt for each source, its id that of the source
    row. sources: the same rows' bare questions and images. keys: for each, a hash of each image.
    about: the source's questions about the same images. skipped: source rows left out, by reason."""

    mode: Mode
    rows: Sequence[Row]
    sources: Sequence[Problem]
    keys: Sequence[tuple[str, ...]]
    about: Mapping[tuple[str, ...], tuple[str, ...]]
    skipped: Mapping[str, int]


def plan(
    problems: Sequence[Problem],
    tokenizer: Any,
    *,
    mode: Mode,
    answers: Mapping[int, str | None] | None = None,
    prompt: str | None = None,
    chat: bool = True,
    system: str | None = None,
    vision: VisionConfig | None,
    images: ImageConfig | None,
) -> Plan:
    """The prompts to write from.

    problems: the source's training rows, bare. answers: for "in_context", by row id: gold, or
    `majority_answers` for the label-free variant; a row without one is left out ("without_answer").
    "direct" reads no question, so rows with the same images ask once ("same_image"). Rows of text
    alone are left out ("without_image"). prompt: in place of PROMPTS[mode], with {question} and
    {answer} where they belong (in_context), as a model knows it that was taught a form of its own.
    UserError for such a prompt without them, or with them for "direct"; for a source without rows
    that will do; for a policy that reads text only; else as `tokenize_rows`.
    """
    template = PROMPTS[mode] if prompt is None else prompt
    for name in ("{question}", "{answer}"):
        if (name in template) != (mode == "in_context"):
            which = "has no" if mode == "in_context" else "must not have"
            raise UserError(f"prompt={template!r} {which} {name}, with mode={mode}.")
    skipped: Counter[str] = Counter()
    about: dict[tuple[str, ...], tuple[str, ...]] = {}
    sources: list[Problem] = []
    keys: list[tuple[str, ...]] = []
    texts: list[str] = []
    for problem in problems:
        if not problem.images:
            skipped["without_image"] += 1
            continue
        key = tuple(_image_hash(image, problem) for image in problem.images)
        first = key not in about
        bare = problem.question.replace(IMAGE_MARKER, "").strip()
        about[key] = (*about.get(key, ()), bare)
        if mode == "direct" and not first:
            skipped["same_image"] += 1
            continue
        answer = (answers or {}).get(problem.id)
        if mode == "in_context" and answer is None:
            skipped["without_answer"] += 1
            continue
        filled = {"question": bare, "answer": answer or ""}
        # In one pass: a question may hold "{answer}".
        texts.append(re.sub(r"\{(question|answer)\}", lambda m, f=filled: f[m[1]], template))
        sources.append(problem)
        keys.append(key)
    if not sources:
        why = ", ".join(f"{n} {name}" for name, n in skipped.items()) or "none there"
        raise UserError(
            f"no row of the source can be written from ({why}): mode={mode} needs images"
            + (", and answers: gold, or a labels folder." if mode == "in_context" else ".")
        )
    if vision is None or images is None:
        raise UserError("this policy reads text only, and questions are written about images.")
    rows, _ = tokenize_rows(
        tokenizer,
        # An id, text and images; no gold, which has no business in a sampling job.
        [
            Problem(s.id, t, None, {}, s.images, s.where)
            for s, t in zip(sources, texts, strict=True)
        ],
        name="the source",
        chat=chat,
        system=system,
        max_prompt_tokens=1 << 30,  # the answering prompts were within the limit; these add a page
        vision=vision,
        images=images,
    )
    return Plan(mode, rows, sources, keys, about, dict(skipped))


def check_reads(reads: str) -> None:
    """UserError for a pattern that is none: for a look before anything costly."""
    try:
        re.compile(reads)
    except re.error as error:
        raise UserError(f"reads={reads!r} is no regular expression: {error}") from error


def bare_problems(rows: Sequence[Row], tokenizer: Any) -> list[Problem]:
    """The problems of rows that no data set holds, such as drawn ones: their prompts without special
    tokens. Of a task whose prompt is its images and the question, and nothing else."""
    special = "|".join(map(re.escape, tokenizer.all_special_tokens))
    return [Problem(r.id, re.sub(special, "", r.prompt), r.gold, {}, r.images) for r in rows]


def majority_answers(
    problems: Sequence[Problem], labels: Mapping[int, Label]
) -> dict[int, str | None]:
    """The majority answers of a `selfevolve label` folder by row id, for the label-free In-Context; a
    row without one is absent. UserError for labels of other questions."""
    found: dict[int, str | None] = {}
    for problem in problems:
        label = labels.get(problem.id)
        if label is None:
            continue
        pieces = [piece.strip() for piece in problem.question.split(IMAGE_MARKER)]
        if not all(piece in label.question for piece in pieces):
            raise UserError(
                f"row {problem.id} asks {problem.question[:60]!r}, but was labelled as "
                f"{label.question[:60]!r}: these labels are of other rows. Fix: label this source."
            )
        found[problem.id] = label.answer
    return found


def synthesise(
    params: Params,
    model: ModelConfig,
    task: Task,
    planned: Plan,
    folder: epath.PathLike,
    *,
    per_image: int,
    checkpoint: str,
    seed: int,
    mesh: Mesh,
    rollout: RolloutConfig,
    sampling: Sampling,
    max_new_tokens: int,
    filters: FilterConfig,
    reads: str = READS,
    told: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Samples `per_image` texts for each prompt, and leaves the data set in `folder`. Returns
    summary.json: {"mode", "sources", "skipped": {reason: rows}, "written", "kept",
    "removed": {filter: questions}, "filters"}.

    task: the policy's, for its name, tokenizer, stop tokens and image settings. reads: a regular
    expression whose last match (first group) is the question. checkpoint: what questions.jsonl names
    as their writer. The others are those of `sampling_job.draw`. Called again it goes on where it was
    killed, and to the same bytes; a finished folder is read. UserError as `draw`, for a finished folder
    of other filters, and where the filters leave nothing (with the counts; the texts stay, and the same
    command with other filters goes on).
    """
    check_reads(reads)
    writing = replace(
        task,
        name=f"{task.name}: {planned.mode} questions",
        train=planned.rows,
        held_out=[],
        answer=AnswerSpec(reads, "exact"),  # so a record's "answer" is the question that was read
    )
    parts = sampling_job.draw(
        params,
        model,
        writing,
        planned.rows,
        folder,
        purpose="questions",
        samples=per_image,
        greedy=False,
        seed=seed,
        mesh=mesh,
        rollout=rollout,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        told={**(told or {}), "checkpoint": checkpoint},
    )
    folder = run_dir.absolute(folder)
    if sampling_job.agreed([(folder / run_dir.SUMMARY).exists()])[0]:
        return _finished(folder, filters)
    records = [record for part in parts for record in part]
    candidates = [
        Candidate(drawn["answer"], key, planned.about[key], drawn["stopped"])
        for record, key in zip(records, planned.keys, strict=True)
        for drawn in record["samples"]
    ]
    # Texts that would be read as more than text: an image's place, or a token of the chat template.
    markers = (IMAGE_MARKER, *task.tokenizer.all_special_tokens)
    kept, removed = filter_questions(candidates, filters, markers)
    summary = {
        "mode": planned.mode,
        "sources": len(planned.rows),
        "skipped": dict(planned.skipped),
        "written": len(candidates),
        "kept": len(kept),
        "removed": removed,
        "filters": run_dir.jsonable(filters),
    }
    if not kept:
        raise UserError(
            f"no question is left of the {len(candidates)} written: {removed}. The texts are in "
            f"{folder}. Fix: filters or a prompt that suit this model, or one that writes questions."
        )
    if jax.process_index() == 0:
        weights = run_dir.read_config(folder)["config"]["weights"]
        origin = {"mode": planned.mode, "checkpoint": checkpoint, "weights": weights, "seed": seed}
        lines = []
        for index in kept:
            place, sample = divmod(index, per_image)
            source, row = planned.sources[place], planned.rows[place]
            files = [run_dir.keep_image(folder, image) for image in source.images]
            lines.append(
                {
                    "image": files if len(files) > 1 else files[0],
                    "question": candidates[index].question,
                    "source_row": source.id,
                    "source_question": source.question,
                    "prompt": row.prompt,
                    "sample": sample,
                    **origin,
                }
            )
        run_dir.write_text_atomic(folder / QUESTIONS, sampling_job.jsonl(lines))
        run_dir.write_summary(folder, summary)  # last: it says that all is there
    return summary


def keep_voted(
    folder: epath.PathLike, labels_folder: epath.PathLike, low: float, high: float
) -> dict[str, Any]:
    """Writes FOLDER/voted.jsonl: the questions whose vote has low <= majority_fraction <= high, each
    with its "pseudo_label" and "majority_fraction". Returns voted.json: {"low", "high", "labels",
    "questions", "kept", "removed": {filter: questions}}.

    labels_folder: of `selfevolve label` on FOLDER/questions.jsonl. UserError for a folder without
    questions, labels of something else, a vote that leaves nothing, or other bounds or labels than
    those that voted.jsonl was made with: a data set in use does not change.
    """
    folder, labels_folder = run_dir.absolute(folder), run_dir.absolute(labels_folder)
    file = folder / QUESTIONS
    if not file.exists():
        raise UserError(
            f"{folder} has no {QUESTIONS}. Fix: the folder of a finished `selfevolve synthesise`."
        )
    labels = read_labels(labels_folder)
    digest = hashlib.sha256((labels_folder / LABELS).read_bytes()).hexdigest()[:16]
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    kept, removed = filter_votes(
        [(i, line["question"]) for i, line in enumerate(lines)], labels, low, high
    )
    summary = {
        "low": low,
        "high": high,
        "labels": digest,
        "questions": len(lines),
        "kept": len(kept),
        "removed": removed,
    }
    if not kept:
        raise UserError(
            f"no question of {len(lines)} has a vote between {low} and {high}: {removed}. Widen them."
        )
    if (folder / VOTES).exists():
        made = json.loads((folder / VOTES).read_text())
        if made != json.loads(json.dumps(summary)):
            raise UserError(
                f"{folder / VOTED} was made with votes between {made['low']} and {made['high']} and "
                f"labels {made['labels']}, and now {low}, {high} and {digest} are asked for. Fix: "
                f"remove {VOTED} and {VOTES} there, if nothing is trained on them."
            )
        return summary
    if jax.process_index() == 0:
        voted = [
            {
                **lines[i],
                "pseudo_label": labels[i].answer,
                "majority_fraction": labels[i].majority_fraction,
            }
            for i in kept
        ]
        run_dir.write_text_atomic(folder / VOTED, sampling_job.jsonl(voted))
        run_dir.write_json_atomic(folder / VOTES, summary)
    return summary


def _finished(folder: epath.Path, filters: FilterConfig) -> dict[str, Any]:
    summary = run_dir.read_summary(folder)
    made, asked = summary.get("filters"), run_dir.jsonable(filters)
    if made != asked:
        changed = [f"{k}: {(made or {}).get(k)!r} -> {v!r}" for k, v in asked.items()]
        changed = [
            c for c, k in zip(changed, asked, strict=True) if (made or {}).get(k) != asked[k]
        ]
        raise UserError(
            f"{folder / QUESTIONS} was made with other filters: {'; '.join(changed)}. Give another "
            "folder, or the old filters."
        )
    return summary


def _image_hash(image: str | bytes, problem: Problem) -> str:
    try:
        data = image if isinstance(image, bytes) else epath.Path(image).read_bytes()
    except OSError as error:
        where = problem.where or f"row {problem.id}"
        raise UserError(
            f"{where}: image {image!r} cannot be read: {error}. Check the path."
        ) from error
    return hashlib.sha256(data).hexdigest()[:16]
