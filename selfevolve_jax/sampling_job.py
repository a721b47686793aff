"""Samples for many problems, a shard at a time, in a folder from which a killed job goes on.

    FOLDER/config.json         what was asked: weights, problems, samples, seed, sampling
    FOLDER/part_00000.jsonl    the first problems, one line each: every sample, graded, and the votes

Each part is written whole or not at all, and one that is there is not drawn again. A sample's random
numbers depend on (seed, purpose, row, sample) alone, so the size of a part changes nothing. What is
yielded is what the files say, whether a part was drawn now or read: what is made of it comes out the
same, byte for byte.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from models.config import ModelConfig
from models.decoder import Params
from selfevolve_jax import hosts, remote, run_dir, sharding
from selfevolve_jax.errors import DiskError, UserError
from selfevolve_jax.evaluate import sampler
from selfevolve_jax.judges.answers import extract
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.tally import equal_to, tally
from selfevolve_jax.rollout.engine import RolloutConfig, Samples
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.tasks.base import Row, Task

# Keys apart from each other's and from the trainer's (its ROLLOUT is 1, and so on).
Purpose = Literal["labels", "evaluation", "questions"]
_PURPOSES: dict[Purpose, int] = {"labels": 101, "evaluation": 102, "questions": 103}
# What a kill may cost. It must not follow from rollout.slots: a machine with less memory goes on.
SAMPLES_A_PART = 1024


def draw(
    params: Params,
    model: ModelConfig,
    task: Task,
    rows: Sequence[Row],
    folder: epath.PathLike | None,
    *,
    purpose: Purpose,
    samples: int,
    greedy: bool,
    seed: int,
    mesh: Mesh,
    rollout: RolloutConfig,
    sampling: Sampling,
    max_new_tokens: int,
    told: Mapping[str, Any] | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows' records part by part, in the order of `rows`. A record is

        {"row", "prompt", "gold", "pseudo_label", "majority_fraction", "votes": {answer: count},
         "majority_correct", "samples": [{"text", "answer", "correct", "length", "stopped"}],
         "greedy": {"text", …} where asked for}

    "correct" is null for a row without gold; "length" is in tokens; votes as in `judges.tally`.

    folder: where parts are kept and looked for; None keeps nothing. samples: at the temperature and
    filters of `sampling`. greedy: also the likeliest text. told: further facts for config.json, such
    as a path, which may differ when the job is continued.
    Drawing waits until the iterator is read, but what is wrong is refused at once: UserError for no
    rows, rows with one id, a folder in use for something else, and for one where something else was
    asked (weights, rows, samples, seed, sampling …), with the difference. UserError later for a
    part that is damaged; DiskError where the disk refuses.
    """
    if not rows or samples < 1:
        raise UserError(f"there are {len(rows)} rows and {samples} samples to draw: at least 1.")
    twice = [i for i, n in Counter(row.id for row in rows).items() if n > 1]
    if twice:  # they would share random numbers, or not, as parts fall
        raise UserError(f"row {twice[0]} comes twice; every row needs an id of its own.")
    n_parts = -(-len(rows) // max(1, SAMPLES_A_PART // samples))
    size = -(-len(rows) // n_parts)
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    names = [f"part_{i:05d}.jsonl" for i in range(len(parts))]
    done = [False] * len(parts)
    if folder is not None:
        folder = run_dir.absolute(folder)
        request = {
            "kind": purpose,
            "told": dict(told or {}),
            "task": task.name,
            "rows": fingerprint(map(_said, rows)),
            "rows_per_part": size,
            "weights": weights_hash(params),
            "dtype": model.dtype,
            "samples": samples,
            "greedy": greedy,
            "seed": seed,
            "sampling": run_dir.jsonable(sampling),
            "max_new_tokens": max_new_tokens,
            "stop_tokens": list(task.stop_tokens),
            "answer": run_dir.jsonable(task.answer),
        }
        open_folder(folder, purpose, request)
        present = {path.name for path in folder.iterdir()} if folder.exists() else set()
        done = agreed([name in present for name in names])
    key = jax.random.fold_in(jax.random.key(seed), _PURPOSES[purpose])

    def drawn(part: Sequence[Row], equivalence: Equivalence) -> list[dict[str, Any]]:
        # The last part is filled up to the others' size, so that nothing compiles for it alone. A
        # row that comes again takes nothing from its first, and is dropped below.
        filled = [*part, *[part[-1]] * (size - len(part))]
        run = sampler(
            *(params, model, task, filled),
            key=key,
            max_new_tokens=max_new_tokens,
            mesh=mesh,
            rollout=rollout,
        )
        many = run(samples, sampling)
        one = run(1, Sampling(temperature=0.0)) if greedy else None
        return _records(part, many, one, task, equivalence)

    def read_or_drawn() -> Iterator[list[dict[str, Any]]]:
        main = jax.process_index() == 0
        with Equivalence(task.answer.equivalence) as equivalence:
            for i, part in enumerate(parts):
                path = None if folder is None else epath.Path(folder) / names[i]
                if path is not None and done[i]:
                    yield _read(path, part, samples)
                    continue
                lines = jsonl(drawn(part, equivalence))
                if path is not None and main:
                    run_dir.write_text_atomic(path, lines)
                tell = max(1, len(parts) // 10)
                if main and len(parts) > 1 and ((i + 1) % tell == 0 or i + 1 == len(parts)):
                    print(f"{purpose}: part {i + 1} of {len(parts)}", flush=True)
                yield [json.loads(line) for line in lines.split("\n")[:-1]]
            if main and equivalence.timeouts:
                print(f"{equivalence.timeouts} comparisons of answers were ended by a limit")

    return read_or_drawn()


def check_folder(folder: epath.PathLike, purpose: str) -> None:
    """UserError if `folder` holds something else than a job of this purpose (`Purpose`, or another
    job's that is kept in the same way): for a look before weights are loaded. It may be missing or
    empty."""
    remote.check(folder)
    path = run_dir.absolute(folder)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file. Give a folder.")
    if (path / run_dir.CONFIG).exists():
        kind = run_dir.read_config(path)["config"].get("kind", "a run")
        if kind != purpose:
            raise UserError(f"{path} holds {kind}, not {purpose}. Give another folder.")
    elif path.exists() and any(not p.name.endswith(".tmp") for p in path.iterdir()):
        raise UserError(
            f"{path} is not empty, and has no {run_dir.CONFIG} of {purpose}. Give another folder."
        )


def open_folder(folder: epath.Path, purpose: str, request: dict[str, Any]) -> None:
    """Makes the folder, or finds that the same was asked of it before; "told" in the request may
    differ. UserError with the difference, and as `check_folder`; DiskError."""

    def make() -> None:
        check_folder(folder, purpose)
        again = (folder / run_dir.CONFIG).exists()
        run_dir.create(folder, request, again, frozenset({"told"}))

    try:
        hosts.first("make the job's folder", make)
    except DiskError:
        raise
    except UserError as error:  # its words are a run's, and a job goes by --out
        raise UserError(str(error).replace("another --run-dir", "another folder")) from None


def agreed(flags: list[bool]) -> list[bool]:
    """What process 0 says, on every process: what each sees of a shared disk may lag behind."""
    return hosts.first("agree on what is done", lambda: flags)


def jsonl(records: Sequence[Mapping[str, Any]]) -> str:
    """One line of JSON a record."""
    text = "".join(json.dumps(run_dir.jsonable(r), ensure_ascii=False) + "\n" for r in records)
    # Half surrogates, which byte-level tokenizers can produce, have an escape but no UTF-8.
    return text.encode("utf-8", "backslashreplace").decode()


def weights_hash(params: Any) -> str:
    """16 hexadecimal digits that tell weights apart: of every bit, its place, each array's path, shape
    and dtype. It does not depend on the mesh: sums of integers modulo 2^32 have no order."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    sums = sharding.to_host(_sums(params))
    digest = hashlib.sha256()
    for (path, leaf), pair in zip(leaves, sums, strict=True):
        said = (jax.tree_util.keystr(path), tuple(leaf.shape), str(leaf.dtype))
        digest.update(repr((said, np.asarray(pair).tolist())).encode())
    return digest.hexdigest()[:16]


@jax.jit
def _sums(params: Any) -> list[jax.Array]:
    return [_sum(leaf) for leaf in jax.tree.leaves(params)]


def _sum(leaf: jax.Array) -> jax.Array:
    """uint32 [2]: two sums of well-mixed words, each of an element's bits and its index."""
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    words = jax.lax.bitcast_convert_type(leaf, kind).astype(jnp.uint32)
    index, stride = jnp.uint32(0), 1
    for axis in reversed(range(leaf.ndim)):
        place = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        index, stride = index + place * jnp.uint32(stride % 2**32), stride * leaf.shape[axis]

    def mixed(salt: int) -> jax.Array:
        x = _stirred(_stirred(index + jnp.uint32(salt)) ^ words)
        return jnp.sum(x, dtype=jnp.uint32)

    return jnp.stack([mixed(0x3C6EF372), mixed(0x1B873593)])


def _stirred(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words that lets every bit reach every other: multiply, shift, xor."""
    for factor, shift in ((0x7FEB352D, 15), (0x846CA68B, 16)):
        x = (x ^ (x >> 16)) * jnp.uint32(factor)
        x = x ^ (x >> shift)
    return x


def fingerprint(records: Iterable[Any]) -> dict[str, Any]:
    """{"count", "sha256"}: how many records of JSON values, and 16 hexadecimal digits that tell them,
    in this order, from others."""
    digest, count = hashlib.sha256(), 0
    for record in records:
        digest.update(json.dumps(record).encode() + b"\n")
        count += 1
    return {"count": count, "sha256": digest.hexdigest()[:16]}


def _said(row: Row) -> list[Any]:
    """What tells a row from others."""
    images = [hashlib.sha256(i).hexdigest() if isinstance(i, bytes) else i for i in row.images]
    return [row.id, row.prompt, list(map(int, row.prompt_tokens)), row.gold, images]


def _read(path: epath.Path, part: Sequence[Row], samples: int) -> list[dict[str, Any]]:
    records = run_dir.read_samples(path)
    if [record.get("row") for record in records] != [row.id for row in part] or any(
        len(record["samples"]) != samples for record in records
    ):
        raise UserError(
            f"{path} is damaged: it does not hold {samples} samples of each of the rows "
            f"{part[0].id} to {part[-1].id}. Fix: remove it, and it is drawn again."
        )
    return records


def _records(
    part: Sequence[Row],
    many: tuple[list[list[str]], Samples],
    one: tuple[list[list[str]], Samples] | None,
    task: Task,
    equivalence: Equivalence,
) -> list[dict[str, Any]]:
    spec, n = task.answer, len(part)
    golds = [(row.gold or "").strip() or None for row in part]
    counted = tally(many[0][:n], spec, equivalence)
    graded = functools.partial(equal_to, labels=golds, equivalence=equivalence)
    majority = graded([[winner] for winner in counted.winners])
    all_samples = _samples(many, counted.answers, graded(counted.answers), golds)
    greedy: list[list[dict[str, Any]]] = []
    if one is not None:
        answers = [[extract(text, spec.pattern) for text in group] for group in one[0][:n]]
        greedy = _samples(one, answers, graded(answers), golds)
    return [
        {
            "row": row.id,
            "prompt": row.prompt,
            "gold": row.gold,
            "pseudo_label": counted.winners[r],
            "majority_fraction": float(counted.majority_fraction_R[r]),
            "votes": counted.votes[r],
            "majority_correct": None if golds[r] is None else majority[r][0],
            "samples": all_samples[r],
            **({"greedy": greedy[r][0]} if greedy else {}),
        }
        for r, row in enumerate(part)
    ]


def _samples(
    texts_and_samples: tuple[list[list[str]], Samples],
    answers: list[list[str | None]],
    correct: list[list[bool]],
    golds: list[str | None],
) -> list[list[dict[str, Any]]]:
    texts, samples = texts_and_samples
    return [
        [
            {
                "text": texts[r][g],
                "answer": answer,
                "correct": None if gold is None else correct[r][g],
                "length": int(samples.lengths_RxG[r, g]),
                "stopped": bool(samples.stopped_RxG[r, g]),
            }
            for g, answer in enumerate(answers[r])
        ]
        for r, gold in enumerate(golds)
    ]
