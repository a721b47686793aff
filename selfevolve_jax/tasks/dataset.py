"""Problems from files and hub data sets: read, checked row by row, split, made into a Task."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np
from etils import epath

from models.config import VisionConfig
from selfevolve_jax.errors import UserError
from selfevolve_jax.images import ImageConfig
from selfevolve_jax.tasks.base import AnswerSpec, Row, Task
from selfevolve_jax.tasks.prompts import Problem, stop_tokens, tokenize_rows
from selfevolve_jax.tasks.records import bad, read_records, require_columns, shown

_LONGEST_PATH = 4096  # what Linux opens; a longer text is an image in base64


@dataclass(frozen=True)
class DataConfig:
    """Where problems come from and how they are read.

    path: a .jsonl, .json (one array of objects) or .parquet file, a directory written by
      `datasets.save_to_disk` or holding a hub data set's files, or a hub id.
    subset, split: of a hub id or a directory; a file has neither.
    held_out_path, held_out_subset, held_out_split: the held-out set, where it is one of its own.
      Training rows that ask one of its questions are then left out ("also_in_held_out").
    held_out_fraction: without held_out_path, the part of `path` to hold out (SRT holds out 1%),
      drawn by held_out_seed; rows with the same question stay on one side. 0 holds nothing out.
    limit: only the first so many rows of `path`.
    question_column, answer_column: their names; answer_column None means unlabelled.
    answer_pattern: a regular expression whose last match in the answer column is the gold answer
      (its first group, if it has one), as "#### *(.+)" for GSM8K; None takes the whole text.
    rephrased_column: name of the column with the same question in other words, which the paired vote
      (co_reward) asks beside it; it has the row's answer and images. A set of its own at
      held_out_path needs none.
    image_column: name of the column with a row's images, for a policy that sees; it needs `chat`. A
      path (from the data file's folder on), the bytes of a file, {"bytes": ..., "path": ...} as
      `datasets` stores it, or a list of these; null, "" or [] is a row of text alone, and so is a
      JSON object without the column. `<image>` in the question says where an image stands; without,
      they all stand before it.
    suffix, chat, system, max_prompt_tokens: see `prompts`.
    pattern, equivalence: how responses are read, see `AnswerSpec`.
    """

    path: str
    subset: str | None = None
    split: str = "train"
    held_out_path: str | None = None
    held_out_subset: str | None = None
    held_out_split: str = "test"
    held_out_fraction: float = 0.01
    held_out_seed: int = 0
    limit: int | None = None
    question_column: str = "question"
    answer_column: str | None = "answer"
    answer_pattern: str | None = None
    rephrased_column: str | None = None
    image_column: str | None = None
    suffix: str = ""
    chat: bool = False
    system: str | None = None
    max_prompt_tokens: int = 1024
    pattern: str = "boxed"
    equivalence: Literal["exact", "math"] = "math"

    def __post_init__(self) -> None:
        if not 0 <= self.held_out_fraction < 1:
            raise UserError(
                f"held_out_fraction={self.held_out_fraction} must be at least 0 and less than 1"
            )
        if self.held_out_seed < 0:
            raise UserError(f"held_out_seed={self.held_out_seed} must be at least 0")
        if self.limit is not None and self.limit < 1:
            raise UserError(
                f"limit={self.limit} must be at least 1; fix: leave it out for all rows"
            )
        if self.max_prompt_tokens < 1:
            raise UserError(f"max_prompt_tokens={self.max_prompt_tokens} must be at least 1")
        if self.answer_pattern is not None and self.answer_column is None:
            raise UserError(
                f"answer_pattern={self.answer_pattern!r} needs answer_column, which is None"
            )
        if self.rephrased_column == self.question_column:
            raise UserError(
                f"rephrased_column={self.rephrased_column!r} is the question's own column; fix: the "
                "column with its other wording, or leave it out"
            )
        if self.system is not None and not self.chat:
            raise UserError(f"system={self.system!r} needs chat, which is False; fix: --task.chat")
        if self.image_column is not None and not self.chat:
            raise UserError(
                f"image_column={self.image_column!r} needs chat, which is False: a chat template "
                "says how a prompt holds images; fix: --task.chat"
            )
        for name in ("answer_pattern", "pattern"):
            try:
                re.compile(getattr(self, name) or "")
            except re.error as error:
                raise UserError(
                    f"{name}={getattr(self, name)!r} is no regular expression: {error}"
                ) from error


@dataclass(frozen=True)
class Form:
    """A data set's own way to hold a problem. columns: those that it takes beside the question's, the
    answer's and the image's. read: from (where, record) the (question, answer) that take the place of
    those two."""

    columns: tuple[str, ...]
    read: Callable[[str, Mapping[str, Any]], tuple[str, str]]


def load_task(
    config: DataConfig,
    tokenizer: Any,
    known_stops: Sequence[int] = (),
    *,
    vision: VisionConfig | None = None,
    images: ImageConfig | None = None,
    form: Form | None = None,
) -> Task:
    """Reads, checks, tokenizes and splits.

    known_stops: tokens that the policy is known to end with, beside the tokenizer's own. vision,
    images: the policy's, None for one that reads text only. Every image is opened here, so that a bad
    one ends no run later. form: how `path` holds its problems, where not plainly in columns. Row ids
    are indices in `path`; those of held_out_path go on where they end.
    A row is over-long where either of its wordings is. UserError names file, row and reason for the
    first bad row.
    """
    train_problems = read_problems(config, form)
    policy = (tokenizer, vision, images)
    train, dropped = _rows(config, *policy, train_problems, config.path)
    counts = {"prompt_too_long": dropped}
    if config.held_out_path is None:
        train, held_out = _split(train, config)
    else:
        held_out_problems = _problems(
            config,
            config.held_out_path,
            config.held_out_subset,
            config.held_out_split,
            first_id=len(train_problems),
        )
        held_out, dropped = _rows(config, *policy, held_out_problems, config.held_out_path)
        counts["prompt_too_long"] += dropped
        asked = {key for row in held_out for key in _question_keys(row)}
        kept = [row for row in train if not asked.intersection(_question_keys(row))]
        if not kept:
            raise UserError(
                f"held_out_path={config.held_out_path!r} asks every question of path="
                f"{config.path!r}: nothing is left to train on; fix: another held_out_path or split"
            )
        counts["also_in_held_out"] = len(train) - len(kept)
        train = kept
    return Task(
        name=config.path,
        train=train,
        held_out=held_out,
        tokenizer=tokenizer,
        stop_tokens=stop_tokens(tokenizer, chat=config.chat, known=known_stops),
        answer=AnswerSpec(config.pattern, config.equivalence),
        counts=counts,
        images=images,
    )


def read_problems(config: DataConfig, form: Form | None = None) -> list[Problem]:
    """The problems of `path`, bare and in file order, before any is held out or left out; errors as
    `load_task`, of which their ids are the row ids."""
    return _problems(config, config.path, config.subset, config.split, config.limit, form=form)


def _rows(
    config: DataConfig,
    tokenizer: Any,
    vision: VisionConfig | None,
    images: ImageConfig | None,
    problems: Sequence[Problem],
    name: str,
) -> tuple[list[Row], int]:
    def tokenized(problems: Sequence[Problem], name: str) -> list[Row]:
        rows, _ = tokenize_rows(
            tokenizer,
            problems,
            name=name,
            suffix=config.suffix,
            chat=config.chat,
            system=config.system,
            max_prompt_tokens=config.max_prompt_tokens,
            vision=vision,
            images=images,
        )
        return rows

    rows = tokenized(problems, name)
    rephrased = [p.extra["pair"] for p in problems if "pair" in p.extra]
    if rephrased:  # the other view of a row is a row itself, see `judges.paired`
        column = f"{name}, column {config.rephrased_column!r}"
        views = {row.id: row for row in tokenized(rephrased, column)}
        rows = [replace(r, extra={"pair": views[r.id]}) for r in rows if r.id in views]
    if not rows:
        raise UserError(
            f"{name}: every row has one wording or the other of more than max_prompt_tokens="
            f"{config.max_prompt_tokens} tokens; fix: a higher --task.max-prompt-tokens"
        )
    return rows, len(problems) - len(rows)


def _question_key(row: Row) -> tuple[str, ...]:
    """Equal for questions that differ in white space only, about the same image files: their bytes
    count, not their names, as data sets keep a copy in the folder of each split."""
    files = [i if isinstance(i, bytes) else epath.Path(i).read_bytes() for i in row.images]
    return " ".join(row.prompt.split()), *(hashlib.sha256(file).hexdigest() for file in files)


def _question_keys(row: Row) -> list[tuple[str, ...]]:
    """The key of the question, and that of its other wording if it has one."""
    return [_question_key(view) for view in (row, row.extra.get("pair")) if view is not None]


def _same_questions(rows: Sequence[Row]) -> list[list[int]]:
    """Indices of rows that must not be parted, in file order: they ask one question, in whichever of
    its wordings, be it by way of a third row."""
    root = list(range(len(rows)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    first: dict[tuple[str, ...], int] = {}
    for i, row in enumerate(rows):
        for key in _question_keys(row):
            low, high = sorted((find(i), find(first.setdefault(key, i))))
            root[high] = low
    groups: dict[int, list[int]] = {}
    for i in range(len(rows)):
        groups.setdefault(find(i), []).append(i)
    return list(groups.values())


def _split(rows: Sequence[Row], config: DataConfig) -> tuple[list[Row], list[Row]]:
    """(train, held out), each in file order. Questions are drawn whole, with all their copies,
    until the fraction (at least one row) is full."""
    if config.held_out_fraction == 0:
        return list(rows), []
    groups = _same_questions(rows)
    wanted = max(1, round(config.held_out_fraction * len(rows)))
    taken: set[int] = set()
    for g in np.random.default_rng(config.held_out_seed).permutation(len(groups)):
        if len(taken) + len(groups[g]) <= wanted:
            taken.update(groups[g])
    if not taken or len(taken) == len(rows):
        raise UserError(
            f"{config.path}: its {len(rows)} rows ({len(groups)} different questions) cannot be "
            f"split at held_out_fraction={config.held_out_fraction}; fix: another fraction, 0 to "
            "hold nothing out, or --task.held-out-path"
        )
    train = [row for i, row in enumerate(rows) if i not in taken]
    return train, [rows[i] for i in sorted(taken)]


def _problems(
    config: DataConfig,
    path: str,
    subset: str | None,
    split: str,
    limit: int | None = None,
    first_id: int = 0,
    form: Form | None = None,
) -> list[Problem]:
    # A held-out set of its own is never trained on, and so never asked in other words.
    rephrased_in = config.rephrased_column if first_id == 0 else None
    wanted_texts = (config.question_column, config.answer_column, rephrased_in)
    columns = [c for c in wanted_texts if c is not None]
    images_in = config.image_column
    problems, has_images, folder = [], images_in is None, _folder(path)
    wanted = [
        *columns,
        *([] if images_in is None else [images_in]),
        *(form.columns if form else ()),
    ]
    records = read_records(path, subset, split, list(dict.fromkeys(wanted)))
    for where, record in itertools.islice(records, limit):
        require_columns(where, record, columns)
        if form is not None:
            # The question's column, and the answer's if there is to be gold.
            record = {**record, **dict(zip(columns, form.read(where, record), strict=False))}
        question = _text(where, config.question_column, record)
        gold = None
        if config.answer_column is not None:
            gold = _gold(where, config.answer_column, record[config.answer_column], config)
        images: tuple[str | bytes, ...] = ()
        if images_in is not None and images_in in record:
            images, has_images = _images(where, images_in, record[images_in], folder), True
        number = first_id + len(problems)
        extra = {}
        if rephrased_in is not None:
            other = _text(where, rephrased_in, record)
            named = f"{where}, column {rephrased_in!r}"
            extra = {"pair": Problem(number, other, images=images, where=named)}
        problems.append(Problem(number, question, gold, extra, images, where))
    if not problems:
        raise UserError(f"{path}: the data set is empty; fix: a file or split with rows in it")
    if not has_images:
        raise UserError(
            f"{path}: no row has a column {images_in!r}; fix: --task.image-column, or a row that says "
            "null there"
        )
    return problems


def _text(where: str, column: str, record: Mapping[str, Any]) -> str:
    if not isinstance(record[column], str) or not record[column].strip():
        raise bad(where, f"{column!r} is {shown(record[column])}, not a text")
    return record[column]


def _images(
    where: str, column: str, value: Any, folder: epath.Path | None
) -> tuple[str | bytes, ...]:
    """Paths and bytes, from what an image column may hold."""
    if value is None or (isinstance(value, str | list) and not value):
        return ()
    return tuple(
        _image(where, column, one, folder)
        for one in (value if isinstance(value, list) else [value])
    )


def _image(where: str, column: str, value: Any, folder: epath.Path | None) -> str | bytes:
    if isinstance(value, dict):
        file, path = value.get("bytes"), value.get("path")
        if (file is None and not path) or not isinstance(file, bytes | None):
            raise bad(where, f'{column!r} is {shown(value)}, with neither "bytes" nor a "path"')
        value = path if file is None else file
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise bad(where, f"{column!r} has {shown(value)}, neither a path nor a file's bytes")
    if value.startswith(("http://", "https://", "data:")) or len(value) > _LONGEST_PATH:
        raise bad(where, f"{column!r} is {shown(value)}, not the path of a file")
    if "://" in value or Path(value).is_absolute():
        return value
    if folder is None:
        raise bad(
            where,
            f"{column!r} is {shown(value)}, and a data set of the hub has no folder to find it in",
        )
    return str(folder / value)


def _folder(path: str) -> epath.Path | None:
    """Where the relative paths of a data set start; None for a hub id."""
    file = epath.Path(path).expanduser()
    return file if file.is_dir() else file.parent if file.exists() else None


def _gold(where: str, column: str, value: Any, config: DataConfig) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise bad(
            where,
            f"{column!r} is {shown(value)}, not a text or a number "
            "(for a data set without labels: --task.answer-column None)",
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise bad(where, f"{column!r} is {value}, not a finite number")
    if not isinstance(value, str):
        # Shortest decimal without an exponent: 5.0 -> 5, 1e-7 -> 0.0000001. Adding 0 unsigns -0.0.
        exact = Decimal(repr(value + 0)) if isinstance(value, float) else Decimal(value)
        text = format(exact, "f")
        value = text.rstrip("0").rstrip(".") if "." in text else text
    if config.answer_pattern is not None:
        matches = list(re.finditer(config.answer_pattern, value))
        found = matches[-1].group(1 if matches[-1].re.groups else 0) if matches else None
        if found is None:
            reason = f"answer_pattern={config.answer_pattern!r} finds nothing in {shown(value)}"
            raise bad(where, reason)
        value = found
    if not value.strip():
        raise bad(where, f"{column!r} is empty")
    return value.strip()
