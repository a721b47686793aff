"""Problems from files and hub data sets: read, checked row by row, split, made into a Task."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np

from selfevolve_jax.errors import UserError
from selfevolve_jax.tasks.base import AnswerSpec, Row, Task
from selfevolve_jax.tasks.prompts import Problem, stop_tokens, tokenize_rows

_FILE_SUFFIXES = (".jsonl", ".json", ".parquet")


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
        if self.system is not None and not self.chat:
            raise UserError(
                f"system={self.system!r} needs chat, which is False; fix: --task.chat true"
            )
        for name in ("answer_pattern", "pattern"):
            try:
                re.compile(getattr(self, name) or "")
            except re.error as error:
                raise UserError(
                    f"{name}={getattr(self, name)!r} is no regular expression: {error}"
                ) from error


def load_task(config: DataConfig, tokenizer: Any, known_stops: Sequence[int] = ()) -> Task:
    """Reads, checks, tokenizes and splits. known_stops: tokens that the policy is known to end with,
    beside the tokenizer's own. Row ids are indices in `path`; those of held_out_path go
    on where they end. UserError names file, row and reason for the first bad row."""
    train_problems = _problems(config, config.path, config.subset, config.split, config.limit)
    train, dropped = _rows(config, tokenizer, train_problems, config.path)
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
        held_out, dropped = _rows(config, tokenizer, held_out_problems, config.held_out_path)
        counts["prompt_too_long"] += dropped
        asked = {_question_key(row) for row in held_out}
        kept = [row for row in train if _question_key(row) not in asked]
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
    )


def _rows(
    config: DataConfig, tokenizer: Any, problems: Sequence[Problem], name: str
) -> tuple[list[Row], int]:
    return tokenize_rows(
        tokenizer,
        problems,
        name=name,
        suffix=config.suffix,
        chat=config.chat,
        system=config.system,
        max_prompt_tokens=config.max_prompt_tokens,
    )


def _question_key(row: Row) -> str:
    """Equal for questions that differ in white space only."""
    return " ".join(row.prompt.split())


def _split(rows: Sequence[Row], config: DataConfig) -> tuple[list[Row], list[Row]]:
    """(train, held out), each in file order. Questions are drawn whole, with all their copies,
    until the fraction (at least one row) is full."""
    if config.held_out_fraction == 0:
        return list(rows), []
    copies: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        copies.setdefault(_question_key(row), []).append(i)
    groups = list(copies.values())
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
) -> list[Problem]:
    columns = [c for c in (config.question_column, config.answer_column) if c is not None]
    problems = []
    for where, record in itertools.islice(_records(path, subset, split, columns), limit):
        _require_columns(where, record, columns)
        question = record[config.question_column]
        if not isinstance(question, str) or not question.strip():
            raise _bad(where, f"{config.question_column!r} is {_shown(question)}, not a text")
        gold = None
        if config.answer_column is not None:
            gold = _gold(where, config.answer_column, record[config.answer_column], config)
        problems.append(Problem(first_id + len(problems), question, gold))
    if not problems:
        raise UserError(f"{path}: the data set is empty; fix: a file or split with rows in it")
    return problems


def _gold(where: str, column: str, value: Any, config: DataConfig) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise _bad(
            where,
            f"{column!r} is {_shown(value)}, not a text or a number "
            "(for a data set without labels: --task.answer-column None)",
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise _bad(where, f"{column!r} is {value}, not a finite number")
    if not isinstance(value, str):
        # Shortest decimal without an exponent: 5.0 -> 5, 1e-7 -> 0.0000001. Adding 0 unsigns -0.0.
        exact = Decimal(repr(value + 0)) if isinstance(value, float) else Decimal(value)
        text = format(exact, "f")
        value = text.rstrip("0").rstrip(".") if "." in text else text
    if config.answer_pattern is not None:
        matches = list(re.finditer(config.answer_pattern, value))
        found = matches[-1].group(1 if matches[-1].re.groups else 0) if matches else None
        if found is None:
            reason = f"answer_pattern={config.answer_pattern!r} finds nothing in {_shown(value)}"
            raise _bad(where, reason)
        value = found
    if not value.strip():
        raise _bad(where, f"{column!r} is empty")
    return value.strip()


def _bad(where: str, reason: str) -> UserError:
    return UserError(f"{where}: {reason}; fix: mend or remove that row")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _require_columns(where: str, names: Mapping[str, Any] | Sequence[str], columns: Sequence[str]):
    for column in columns:
        if column not in names:
            raise UserError(
                f"{where}: no column {column!r}; there are: {', '.join(names) or 'none'}; "
                "fix: --task.question-column or --task.answer-column"
            )


def _records(
    path: str, subset: str | None, split: str, columns: Sequence[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, record) for each row; `where` is "file, line 3" (JSONL) or "file, row 2" (from 0)."""
    file = Path(path).expanduser()
    if file.is_dir():
        return _hub_records(path, str(file), subset, split, columns)
    if not file.exists():
        # A hub id is NAME or OWNER/NAME; whatever looks like a path is one.
        if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", path) or path.endswith(_FILE_SUFFIXES):
            raise UserError(f"{path}: no such file or directory (looked in {Path.cwd()})")
        return _hub_records(path, path, subset, split, columns)
    readers = dict(
        zip(_FILE_SUFFIXES, (_jsonl_records, _json_records, _parquet_records), strict=True)
    )
    if file.suffix not in readers:
        raise UserError(f"{path}: unknown kind of file; fix: one of {', '.join(_FILE_SUFFIXES)}")
    return _disk_errors_named(path, readers[file.suffix](path, file, columns))


def _disk_errors_named(path: str, records: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from records
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def _jsonl_records(path: str, file: Path, columns: Sequence[str]):
    with file.open("rb") as lines:  # bytes: an undecodable line is named like any other bad line
        for number, line in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            if line.strip():
                yield where, _object(where, _parse_json(where, line))


def _json_records(path: str, file: Path, columns: Sequence[str]):
    hint = "a .json file holds one array of objects; one object a line belongs in a .jsonl file"
    records = _parse_json(f"{path} ({hint})", file.read_bytes())
    if not isinstance(records, list):
        raise UserError(f"{path}: not an array but {_shown(records)}; fix: {hint}")
    for i, record in enumerate(records):
        yield f"{path}, row {i}", _object(f"{path}, row {i}", record)


def _parse_json(where: str, data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))  # -sig: some editors put a byte-order mark
    except (ValueError, RecursionError) as error:
        raise _bad(where, f"invalid JSON: {error}") from error


def _object(where: str, record: Any) -> Mapping[str, Any]:
    if not isinstance(record, dict):
        raise _bad(where, f"{_shown(record)} is not an object with columns")
    return record


def _parquet_records(path: str, file: Path, columns: Sequence[str]):
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(file)
        _require_columns(path, parquet.schema_arrow.names, columns)
        batches = parquet.iter_batches(columns=list(columns))
        records = (record for batch in batches for record in batch.to_pylist())
        for i, record in enumerate(records):
            yield f"{path}, row {i}", record
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from error


def _hub_records(
    path: str, source: str, subset: str | None, split: str, columns: Sequence[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a directory or a hub id, through `datasets`."""
    import datasets  # here: takes seconds
    from datasets.exceptions import DatasetsError

    local = Path(source)
    try:
        if (local / "state.json").exists() or (local / "dataset_dict.json").exists():
            data = datasets.load_from_disk(source)
            if isinstance(data, datasets.DatasetDict):
                if split not in data:
                    raise UserError(
                        f"{path}: no split {split!r}; there are: {', '.join(map(str, data))}"
                    )
                data = data[split]
        else:
            data = datasets.load_dataset(source, subset, split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        what = f"subset={subset!r}, split={split!r}: {error}"
        if local.is_dir():
            raise UserError(f"{path}: cannot be loaded: {what}") from error
        raise UserError(
            f"{path}: no local path, and not to be had from the hub; {what}; fix: check the name, "
            f"or, where there is a network, run `hf download {path} --repo-type dataset "
            "--local-dir DIR` and give DIR as the path"
        ) from error
    where = f"{path} ({split})"
    _require_columns(where, data.column_names, columns)
    for i, record in enumerate(data.select_columns(list(columns))):
        yield f"{where}, row {i}", dict(record)
