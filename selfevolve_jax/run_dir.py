"""The run directory: where one run keeps its config, samples and headline figures.

    RUN/config.json           resolved config, versions, git revision
    RUN/metrics.jsonl         one line a step (metrics.py)
    RUN/samples/step_000123.jsonl[.gz]
    RUN/images/               pictures that the samples of the report are about (`keep_image`)
    RUN/checkpoints/  RUN/tensorboard/  RUN/report.html  RUN/summary.json
    RUN/arms/ARM/…            the same again for each arm of a recipe with several

Every file is written whole or not at all: a temporary file beside it, then a rename. Paths may be
remote (gs://…), where an upload is whole or absent by itself. Only process 0 may write.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gzip
import hashlib
import io
import json
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path as LocalPath
from typing import Any

import numpy as np
from etils import epath

from selfevolve_jax import hosts, remote
from selfevolve_jax.errors import DiskError, UserError
from selfevolve_jax.remote import is_remote

CONFIG, METRICS, SUMMARY, REPORT = "config.json", "metrics.jsonl", "summary.json", "report.html"
PACKAGES = (
    *("selfevolve-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
    *("numpy", "transformers", "datasets", "math-verify"),
)
ROWS_SHOWN = 2  # of a step's rows, the first ones are those that the report shows
SHOWN_WITHIN_S = 30.0  # what one host wrote, on another
GZIP_ABOVE_BYTES = 1 << 20  # small sample files stay readable with any pager
DISK_REASONS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG)
)


def check(
    path: str | os.PathLike[str],
    config: Mapping[str, Any],
    resume: bool,
    may_change: frozenset[str] = frozenset(),
) -> None:
    """Raises what `create` would refuse, and writes nothing: for a look before costly work."""
    remote.check(path)
    run = epath.Path(path)
    if run.exists() and not run.is_dir():
        raise UserError(f"run directory {run} is a file. Fix: pass another --run-dir.")
    above = next((p for p in absolute(run).parents if p.exists()), run)
    if not is_remote(run) and not above.is_dir():
        raise UserError(f"run directory {run}: {above} is a file. Fix: pass another --run-dir.")
    if is_new(run):
        return
    if resume:
        stored = read_config(run)["config"]
        _refuse_changes(run, flatten(stored), flatten(jsonable(config)), may_change)
    else:
        raise UserError(
            f"run directory {run} already exists and is not empty. "
            "Fix: pass --resume to continue that run, or another --run-dir."
        )


def create(
    path: str | os.PathLike[str],
    config: Mapping[str, Any],
    resume: bool,
    may_change: frozenset[str] = frozenset(),
) -> epath.Path:
    """Makes the run directory, or reopens it, and writes its config.json.

    config: the resolved config as nested dictionaries (values as in `jsonable`).
    may_change: dotted prefixes ("trainer.steps", "eval") of options that a resume may change; any
      other difference from the stored config is refused.

    A resume where nothing is yet starts afresh, and says so: a scheduler that restarts a preempted job
    has one command line for its first start and every later one. A recipe with several arms passes
    `(arm_dir / "config.json").exists()` for each, as an arm may not have begun.

    Raises UserError for a directory in use, a resume of what is no run, or a config that differs;
    DiskError if the disk refuses.
    """
    check(path, config, resume, may_change)
    run = epath.Path(path)
    if resume and is_new(run):
        print(f"{run}: nothing is there to resume; the run starts from its beginning", flush=True)
    with disk_errors(run):
        try:
            run.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # in /proc, say
            raise UserError(
                f"run directory {run} cannot be made there: {error.strerror}. "
                "Fix: pass another --run-dir."
            ) from error
    commit, dirty = git_revision()
    record = {
        "config": config,
        "versions": versions(),
        "git_revision": commit,
        "git_dirty": dirty,
    }
    write_json_atomic(run / CONFIG, record)
    return run


def is_new(path: str | os.PathLike[str]) -> bool:
    """Whether nothing is there yet. What a write that was cut short left behind does not count."""
    run = epath.Path(path)
    return not run.exists() or (run.is_dir() and all(_is_temporary(p.name) for p in run.iterdir()))


def check_shared(folder: str | os.PathLike[str], name: str = "run directory") -> None:
    """UserError if `folder`, which process 0 has made, is not there for another process of the run. A
    network file system may show it late, so each looks for a while."""
    path, deadline = epath.Path(folder), time.monotonic() + SHOWN_WITHIN_S
    while not (there := path.exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    blind = [i for i, seen in enumerate(hosts.gather(f"the {name}", there)) if not seen]
    if blind:
        raise UserError(
            f"{name} {folder} is not there for process {', '.join(map(str, blind))}, though process 0 "
            "made it. Fix: put it on a file system that all hosts share, or on gs://."
        )


def read_config(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """config.json as {"config", "versions", "git_revision", "git_dirty"}. UserError if it is not
    there or not readable as such."""
    remote.check(run_dir)
    path = epath.Path(run_dir) / CONFIG
    record = read_json(
        path,
        f"{run_dir} is not a run directory: it has no {CONFIG}. Fix: pass the --run-dir of a run.",
    )
    if not isinstance(record.get("config"), dict):
        raise UserError(f'{path} is damaged: it has no "config" object. Fix: restore the file.')
    return record


def write_summary(run_dir: str | os.PathLike[str], summary: Mapping[str, Any]) -> None:
    """summary.json: {"arms": {ARM: {"before": {METRIC: number}, "after": {…}}}, "seconds": …}."""
    write_json_atomic(epath.Path(run_dir) / SUMMARY, summary)


def read_summary(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_summary` wrote. UserError if it is missing or damaged."""
    path = epath.Path(run_dir) / SUMMARY
    return read_json(path, f"{run_dir} has no {SUMMARY}. Fix: let the run end, or --resume it.")


def summary_so_far(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """`read_summary`; empty where there is none yet."""
    return read_summary(run_dir) if (epath.Path(run_dir) / SUMMARY).exists() else {}


def write_samples(
    run_dir: str | os.PathLike[str], step: int, rows: Sequence[Mapping[str, Any]]
) -> epath.Path:
    """samples/step_%06d.jsonl, one line a row: {"step", "row", "prompt", "gold", "pseudo_label",
    "majority_fraction", "votes": {answer: count}, "samples": [{"text", "answer", "reward",
    "trained", "parts": {name: number}, "length", "stopped"}]}, and for the first ROWS_SHOWN rows, if
    they have pictures, "images": [path] (`keep_image`). Gzipped (.jsonl.gz) above 1 MiB."""
    text = "".join(_dumps(row) + "\n" for row in rows)
    data = text.encode()
    plain = epath.Path(run_dir) / "samples" / f"step_{step:06d}.jsonl"
    zipped = plain.with_name(plain.name + ".gz")
    with disk_errors(plain):
        plain.parent.mkdir(parents=True, exist_ok=True)
    if len(data) > GZIP_ABOVE_BYTES:
        # mtime=0: the same rows give the same bytes
        path, stale, data = zipped, plain, gzip.compress(data, compresslevel=6, mtime=0)
    else:
        path, stale = plain, zipped
    write_bytes_atomic(path, data)
    stale.unlink(missing_ok=True)  # left by an earlier life of a resumed run
    return path


def keep_image(run_dir: str | os.PathLike[str], image: str | bytes) -> str:
    """Where a row of samples, or a written question, finds its picture: the path that it came from,
    made absolute; of a file's bytes images/HASH.KIND in the directory, relative to it and written there
    once, as it is.
    Raises DiskError if the disk refuses."""
    if isinstance(image, str):
        return os.fspath(absolute(image))
    from PIL import Image  # only runs with pictures need it

    with Image.open(io.BytesIO(image)) as opened:
        kind = (opened.format or "png").lower()
    path = epath.Path(run_dir) / "images" / f"{hashlib.sha256(image).hexdigest()[:16]}.{kind}"
    if not path.exists():
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(path, image)
    return f"images/{path.name}"


def sample_steps(run_dir: str | os.PathLike[str]) -> dict[int, epath.Path]:
    """Step -> sample file, in step order; empty when there are none."""
    folder = epath.Path(run_dir) / "samples"
    if not folder.exists():
        return {}
    found = {}
    for path in folder.iterdir():
        stem, _, ending = path.name.partition(".")
        if stem.startswith("step_") and stem[5:].isdigit() and ending in ("jsonl", "jsonl.gz"):
            found[int(stem[5:])] = path
    return dict(sorted(found.items()))


def read_samples(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of one sample file. UserError naming file and line if it is damaged."""
    path = epath.Path(path)
    try:
        data = path.read_bytes()
        lines = (gzip.decompress(data) if path.name.endswith(".gz") else data).splitlines()
    except (OSError, EOFError) as error:  # gzip's own errors are among these
        raise UserError(f"{path} cannot be read: {error}. Fix: remove or restore it.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line.decode())
        except ValueError as error:
            raise UserError(f"{path} line {number} is damaged: {error}.") from error
        if not isinstance(row, dict) or not isinstance(row.get("samples"), list):
            raise UserError(f'{path} line {number} is not a row of samples: it has no "samples".')
        rows.append(row)
    return rows


def write_json_atomic(path: str | os.PathLike[str], obj: Any) -> None:
    """Indented JSON, whole or not at all. NaN and infinities become null (see `jsonable`)."""
    write_text_atomic(path, _dumps(obj, indent=2) + "\n")


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """UTF-8 text, whole or not at all: after any failure the old file is as it was.

    Raises DiskError, naming the path and the reason, when the disk is full or read-only, the quota
    is spent or permission is missing.
    """
    write_bytes_atomic(epath.Path(path), text.encode())


def jsonable(obj: Any) -> Any:
    """What JSON can hold: mappings, lists (also from tuples, sorted sets and arrays), strings,
    numbers, booleans and null. Dataclasses become mappings, paths strings. NaN and infinities
    become null: JSON has neither, and pandas reads null as NaN. Else TypeError."""
    if obj is None or isinstance(obj, (str, bool, int)):
        return obj
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, Mapping):
        return {str(key): jsonable(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [jsonable(value) for value in obj]
    if isinstance(obj, (set, frozenset)):
        return sorted(jsonable(value) for value in obj)
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: jsonable(getattr(obj, f.name)) for f in dataclasses.fields(obj)}
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if isinstance(obj, (np.ndarray, np.generic)) or hasattr(obj, "__array__"):  # jax arrays too
        plain = np.asarray(obj).tolist()
        if not isinstance(plain, np.generic):  # numpy has a few numbers that Python lacks
            return jsonable(plain)
    raise TypeError(f"{type(obj).__name__} cannot be stored as JSON: {obj!r}")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keyed by dotted names; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def versions() -> dict[str, str | None]:
    """Python, operating system and the packages that decide numbers, without importing them."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    found["platform"] = platform.platform()
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def git_revision() -> tuple[str | None, bool | None]:
    """(commit, whether tracked files differ from it) of the checkout this code runs from;
    (None, None) for an installed wheel, even inside somebody else's repository."""
    root = LocalPath(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None, None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit, bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):  # no git, no commit yet, or not ours to read
        return None, None


def _refuse_changes(
    run: epath.Path, old: dict[str, Any], new: dict[str, Any], may_change: frozenset[str]
) -> None:
    absent = object()

    def shown(value: Any) -> str:
        return "(absent)" if value is absent else json.dumps(value, ensure_ascii=False)

    differences = []
    for key in sorted(old.keys() | new.keys()):
        free = any(key == prefix or key.startswith(prefix + ".") for prefix in may_change)
        before, after = old.get(key, absent), new.get(key, absent)
        if not free and before != after:
            differences.append(f"  {key}: {shown(before)} -> {shown(after)}")
    if differences:
        raise UserError(
            f"cannot resume {run}: these options differ from the run's own:\n"
            + "\n".join(differences)
            + "\nFix: give the old values, or start afresh in another --run-dir."
        )


def read_json(path: epath.Path, if_missing: str) -> dict[str, Any]:
    """The object of a file. UserError: if_missing, or what is wrong with the file."""
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(if_missing) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}. Fix: restore the file.") from error
    if not isinstance(record, dict):
        raise UserError(f"{path} is damaged: not a JSON object. Fix: restore the file.")
    return record


def _dumps(obj: Any, indent: int | None = None) -> str:
    text = json.dumps(jsonable(obj), indent=indent, ensure_ascii=False)
    # half surrogates, which byte-level tokenizers can produce, have an escape but no UTF-8
    return re.sub(r"[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


@contextlib.contextmanager
def disk_errors(path: epath.Path) -> Iterator[None]:
    """Turns the disk's and the bucket's refusals into DiskError; other errors are bugs and pass."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in DISK_REASONS or (is_remote(path) and remote.is_refusal(error)):
            said = " ".join(str(error).split()) or type(error).__name__
            reason = os.strerror(number) if number else said
            raise DiskError(
                f"cannot write {path}: {reason}. What was there before is intact. "
                "Fix: free space or permissions there and run it again, with --resume where there "
                "is one; or write elsewhere."
            ) from error
        raise


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """`path` from the root of its file system: Orbax takes no other, and a run must not move when
    the process changes its working directory."""
    return epath.Path(path) if is_remote(path) else epath.Path(os.path.abspath(path))


def write_bytes_atomic(path: epath.Path, data: bytes) -> None:
    """`write_text_atomic` for bytes."""
    write_files_atomic(path.parent, {path.name: data})


def write_files_atomic(folder: epath.Path, files: Mapping[str, bytes]) -> None:
    """Files of one folder, by name, each whole or not at all; all are on disk when this returns."""
    with disk_errors(folder / ", ".join(files)):
        if is_remote(folder):
            for name, data in files.items():
                (folder / name).write_bytes(data)
            return
        # epath spells a path out anew at every use, which took as long as the writing itself
        place = os.fspath(folder)
        for name, data in files.items():
            # the process id keeps `selfevolve report` and a running trainer out of each other's way
            temporary = os.path.join(place, f".{name}.{os.getpid()}.tmp")
            try:
                with open(temporary, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, os.path.join(place, name))
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        held = os.open(place, os.O_RDONLY)  # makes the renames themselves survive a power cut
        try:
            os.fsync(held)
        finally:
            os.close(held)
