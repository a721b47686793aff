"""Records of a data set, one after another, from a file of any kind, a folder or the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfevolve_jax.errors import UserError

_FILE_SUFFIXES = (".jsonl", ".json", ".parquet")


def bad(where: str, reason: str) -> UserError:
    """The refusal of one row, to be raised."""
    return UserError(f"{where}: {reason}; fix: mend or remove that row")


def shown(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def require_columns(
    where: str, names: Mapping[str, Any] | Sequence[str], columns: Sequence[str]
) -> None:
    """UserError for the first of `columns` that is not among `names`."""
    for column in columns:
        if column not in names:
            raise UserError(
                f"{where}: no column {column!r}; there are: {', '.join(names) or 'none'}; "
                "fix: --task.question-column, --task.answer-column, --task.rephrased-column or "
                "--task.image-column"
            )


def read_records(
    path: str, subset: str | None, split: str, columns: Sequence[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, record) for each row; `where` is "file, line 3" (JSONL) or "file, row 2" (from 0).

    columns: what is wanted of each record. A JSON record may lack some, which is for the caller to
    see; any other source without one of them is refused. Images stay the bytes or the path that they
    are stored as. UserError for what is missing, damaged, or of an unknown kind.
    """
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
        raise UserError(f"{path}: not an array but {shown(records)}; fix: {hint}")
    for i, record in enumerate(records):
        yield f"{path}, row {i}", _object(f"{path}, row {i}", record)


def _parse_json(where: str, data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))  # -sig: some editors put a byte-order mark
    except (ValueError, RecursionError) as error:
        raise bad(where, f"invalid JSON: {error}") from error


def _object(where: str, record: Any) -> Mapping[str, Any]:
    if not isinstance(record, dict):
        raise bad(where, f"{shown(record)} is not an object with columns")
    return record


def _parquet_records(path: str, file: Path, columns: Sequence[str]):
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(file)
        require_columns(path, parquet.schema_arrow.names, columns)
        # Small batches: a row may hold images.
        batches = parquet.iter_batches(batch_size=1024, columns=list(columns))
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
    require_columns(where, data.column_names, columns)
    data = data.select_columns(list(columns))
    for column in columns:
        stored = _undecoded(data.features[column])
        if stored is not None:
            data = data.cast_column(column, stored)
    for i, record in enumerate(data):
        yield f"{where}, row {i}", dict(record)


def _undecoded(feature: Any) -> Any:
    """The feature that gives an image, or a list of them, as it is stored; None for other kinds."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, datasets.List | datasets.LargeList):
        inner = _undecoded(feature.feature)
        return inner and type(feature)(inner)
    return None
