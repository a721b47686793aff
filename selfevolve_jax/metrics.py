"""Metrics of a run: metrics.jsonl, TensorBoard, an optional tracker, and what the terminal shows.

metrics.jsonl is the record: one line a step, {"step": k, NAME: number or null, …}. A number that is
NaN or infinite is stored as null: JSON has no other word for it and pandas reads it back as NaN.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Literal

from etils import epath

from selfevolve_jax import remote
from selfevolve_jax import run_dir as files
from selfevolve_jax.errors import UserError

FLUSH_SECONDS = 30.0  # TensorBoard, and a metrics.jsonl in a bucket, no oftener than this


class MetricLog:
    """Appends to RUN/metrics.jsonl, RUN/tensorboard/ and the tracker; only where `enabled` is set
    (process 0), and nothing at all elsewhere.

    resume_step: the step of the checkpoint the run continues from: later lines are dropped, as is a
      last line torn by a kill, so that every step is there exactly once. None is a fresh run: all
      older lines are dropped.
    tracker_id: the tracker's name for this run; stored in the checkpoint (`log.tracker_id`) and
      given back on resume. Made up when None.

    Call `flush` before saving a checkpoint: local lines are in the file as soon as `log` returns,
    but a bucket cannot append (`remote.Appended`): there they go up every 30 s, on `flush` and on
    `close`. So a kill costs such lines alone as come after the checkpoint, and a resume writes again.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        *,
        resume_step: int | None,
        enabled: bool = True,
        tracker: Literal["wandb", "trackio"] | None = None,
        tracker_id: str | None = None,
        project: str = "selfevolve",
        config: Mapping[str, Any] | None = None,
    ):
        self.tracker_id = tracker_id or (uuid.uuid4().hex[:12] if tracker else None)
        self._enabled = enabled
        if not enabled:
            return
        run = epath.Path(run_dir)
        # first, because a missing package must not cost the old lines
        self._tracker = _start_tracker(tracker, self.tracker_id, run, project, config)
        self._path = run / files.METRICS
        kept = _lines_until(self._path, resume_step)
        before = "".join(line + "\n" for line in kept).encode()
        files.write_bytes_atomic(self._path, before)
        self._remote = remote.Appended(self._path, before) if files.is_remote(run) else None
        self._last_step = json.loads(kept[-1])["step"] if kept else None
        self._events = _open_events(run / "tensorboard", resume_step)
        self._flushed_at = time.monotonic()

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one line. Values are numbers or scalar arrays; steps must rise.

        Raises DiskError if the disk refuses: the file then ends with the last whole line.
        """
        if not self._enabled:
            return
        if self._last_step is not None and step <= self._last_step:
            raise ValueError(f"metrics of step {step} after those of step {self._last_step}")
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        line = (json.dumps(files.jsonable({"step": step, **numbers})) + "\n").encode()
        if self._remote is None:
            with files.disk_errors(self._path):
                _append_whole(self._path, line)
        else:
            self._remote.write(line)
        self._last_step = step
        with files.disk_errors(self._path.parent / "tensorboard"):
            _add_event(self._events, step, numbers)
        if self._tracker is not None:
            self._tracker.log(numbers, step=step)
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Returns once everything logged is in the files."""
        if not self._enabled:
            return
        if self._remote is not None:
            with files.disk_errors(self._path):
                self._remote.flush()
        with files.disk_errors(self._path.parent / "tensorboard"):
            self._events.flush()
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        """Flushes and ends the tracker's run; calling it twice does nothing more."""
        if not self._enabled:
            return
        self.flush()
        self._enabled = False
        with files.disk_errors(self._path.parent / "tensorboard"):
            self._events.close()
        if self._tracker is not None:
            self._tracker.finish()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, in file order. A torn last line (the run was killed, or is
    writing now) is left out; any other damage is a UserError naming the line."""
    return [json.loads(line) for line in _whole_lines(epath.Path(path))]


def _whole_lines(path: epath.Path) -> list[str]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. Fix: pass the --run-dir of a run.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    # without its newline the last line is torn, even if what is there happens to parse (12 of 123)
    *lines, _torn = data.split(b"\n")
    whole = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            sound = isinstance(record, dict) and type(record.get("step")) is int
        except ValueError:
            sound = False
        if not sound:
            raise UserError(
                f"{path} line {number} is damaged: {line[:60]!r}. "
                'Each line must be a JSON object with a whole "step". Fix: remove that line.'
            )
        whole.append(line.decode())
    return whole


def _lines_until(path: epath.Path, step: int | None) -> list[str]:
    if step is None or not path.exists():
        return []
    return [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]


def _append_whole(path: epath.Path, data: bytes) -> None:
    """One write; if it fails or falls short, the file is cut back to where it ended before."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        end = os.fstat(descriptor).st_size
        try:
            view = memoryview(data)
            while view:  # a full disk writes a part first, and refuses the rest
                view = view[os.write(descriptor, view) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)


def _number(name: str, value: Any) -> int | float | None:
    plain = files.jsonable(value)
    if plain is None and value is not None:
        return math.nan if math.isnan(float(value)) else float(value)
    if plain is None or (isinstance(plain, (int, float)) and not isinstance(plain, bool)):
        return plain
    raise TypeError(f"metric {name} is not a number: {value!r}")


def _open_events(folder: epath.Path, resume_step: int | None) -> Any:
    """TensorBoard's event file, written in this thread: SummaryWriter's own thread dies on a full
    disk and then blocks the trainer for ever on its queue."""
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
    from tensorboardX.record_writer import register_writer_factory

    # tensorboardX's own writes the whole file again at each flush
    register_writer_factory("gs", SimpleNamespace(open=remote.Appended))
    with files.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # a resume within the same second must not overwrite the killed run's file
        writer = EventsWriter(
            os.fspath(folder / "events"), f".{os.getpid()}.{uuid.uuid4().hex[:6]}"
        )
        if resume_step is not None:  # TensorBoard hides what an earlier life logged from here on
            start = SessionLog(status=SessionLog.START)
            writer.write_event(
                Event(wall_time=time.time(), step=resume_step + 1, session_log=start)
            )
            writer.flush()
    return writer


def _add_event(events: Any, step: int, numbers: Mapping[str, int | float | None]) -> None:
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore
    from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore

    values = [
        Summary.Value(tag=name, simple_value=number)
        for name, number in numbers.items()
        if number is not None
    ]
    events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))


def _start_tracker(
    tracker: str | None,
    tracker_id: str | None,
    run: epath.Path,
    project: str,
    config: Mapping[str, Any] | None,
) -> Any:
    """A wandb or trackio run: both have .log(dict, step=) and .finish()."""
    if tracker is None:
        return None
    if tracker not in ("wandb", "trackio"):
        raise UserError(f"tracker {tracker!r} is not known. Fix: use wandb or trackio, or none.")
    settings = files.jsonable(config or {})
    try:
        if tracker == "wandb":
            import wandb  # pyright: ignore[reportMissingImports]

            folder = None if files.is_remote(run) else os.fspath(run)
            return wandb.init(
                project=project,
                id=tracker_id,
                name=run.name,
                config=settings,
                dir=folder,
                resume="allow",
            )
        import trackio  # pyright: ignore[reportMissingImports]

        return trackio.init(project, name=tracker_id, config=settings, resume="allow")
    except ImportError as error:
        raise UserError(
            f"tracker {tracker} is not installed ({error}). "
            f"Fix: uv sync --extra {tracker}, or leave --tracker out."
        ) from error


# What one line a step tells, where it is present: (metric, word on the line, format).
SHOWN = (
    ("reward/mean", "reward", ".3f"),
    ("reward/gold", "gold", ".3f"),
    ("judge/majority_fraction", "majority share", ".2f"),
    ("kl/ref", "KL", ".4f"),
    ("policy/entropy", "entropy", ".3f"),
    ("response/length_mean", "length", ".1f"),
    ("throughput/tokens_per_s", "tok/s", ".0f"),
    ("eval/mean", "held-out mean", ".3f"),
    ("eval/majority", "majority", ".3f"),
    ("eval/greedy", "greedy", ".3f"),
)
LINES_OFF_A_TTY = 20


class Terminal:
    """What a run shows. On a TTY: a progress bar, and a line a step above it. Elsewhere: plain
    lines without control codes, about 20 a run and the last step's. Silent unless `enabled`
    (process 0).

    `with Terminal(total_steps, title, enabled) as terminal: terminal.step(k, metrics)`; k counts
    from 1, and a resumed run may start anywhere.
    """

    def __init__(self, total_steps: int, title: str, enabled: bool = True):
        self._total, self._title, self._enabled = total_steps, title, enabled
        self._every = max(1, math.ceil(total_steps / LINES_OFF_A_TTY))
        self._waiting: dict[str, Any] = {}  # held-out figures of steps whose line was left out
        self._started = False
        self._progress: Any = None

    def __enter__(self) -> Terminal:
        if self._enabled and sys.stdout.isatty():
            from rich import progress

            self._progress = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TextColumn("left"),
                progress.TimeRemainingColumn(),
                transient=True,
            )
            self._task = self._progress.add_task(printable(self._title), total=self._total)
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._waiting |= {k: v for k, v in metrics.items() if k.startswith("eval/")}
        if self._progress is not None:
            self._progress.update(self._task, completed=step)
        elif self._started and step % self._every and step < self._total:
            return
        self._started = True
        words = [f"{self._title} {step:>{len(str(self._total))}}/{self._total}"]
        for name, word, shape in SHOWN:
            value = {**metrics, **self._waiting}.get(name)
            if value is not None:
                words.append(f"{word} {format(float(value), shape)}")
        self._waiting = {}
        self.message("  ".join(words))

    def message(self, text: str) -> None:
        if not self._enabled:
            return
        if self._progress is not None:
            self._progress.console.print(
                printable(text), markup=False, highlight=False, emoji=False, soft_wrap=True
            )
        else:
            print(printable(text), flush=True)

    def samples(self, samples: Sequence[tuple[str, str, float]]) -> None:
        """Shows up to three (prompt, response, reward)."""
        for prompt, response, reward in samples[:3]:
            self.message(f"  prompt    {_shortened(prompt)}")
            self.message(f"  response  {_shortened(response)}")
            self.message(f"  reward    {reward:g}")


def printable(text: str) -> str:
    """`text` as this terminal can show it: a model's control characters (ANSI escapes among them)
    and characters outside stdout's encoding become escapes; newlines and tabs stay."""
    text = "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _shortened(text: str, limit: int = 300) -> str:
    text = text.replace("\n", "⏎ ")
    return text if len(text) <= limit else f"{text[: limit - 60]} … {text[-50:]}"
