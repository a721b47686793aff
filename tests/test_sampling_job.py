"""The job against itself killed, cut otherwise, asked otherwise; records worked out by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decoder
from models.params import shapes
from selfevolve_jax import evaluate, run_dir, sampling_job, sharding, state
from selfevolve_jax.errors import UserError
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.tasks import arithmetic
from selfevolve_jax.tasks.base import Row, Task
from tests.drawn import TEXT, encode, samples_of


def row(id, prompt="1+2=", gold="3"):
    return Row(id, prompt, tuple(encode(prompt)), gold)


def said(row_id, sample):
    """What the stand-in policy answers."""
    return f"{(row_id * 7 + sample) % 3 + 2}."


@pytest.fixture
def engine(monkeypatch):
    """A stand-in for the engine; it notes what it is asked, and dies at the call `dies_at`."""
    calls = []

    def generate(params, prompts, row_ids, n, key, sampling, **rest):
        calls.append((list(row_ids), n, key, sampling, rest))
        if len(calls) == engine.dies_at:
            raise KeyboardInterrupt
        return samples_of([[said(i, g) for g in range(n)] for i in row_ids])

    def engine():
        return calls

    engine.dies_at = None
    monkeypatch.setattr(evaluate, "generate", generate)
    return engine


@pytest.fixture
def draw(tiny, mesh1):
    def draw(rows, folder=None, params=None, **changes):
        settings = {
            "purpose": "labels",
            "samples": 4,
            "greedy": True,
            "seed": 5,
            "sampling": Sampling(),
            "max_new_tokens": 6,
            "rollout": RolloutConfig(8, 4),
        }
        task = Task("t", [], rows, TEXT, (15,), arithmetic.ANSWER)
        if params is None:
            params = {"w": jnp.ones(3)}
        return sampling_job.draw(
            params, tiny, task, rows, folder, mesh=mesh1, **(settings | changes)
        )

    return draw


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != run_dir.CONFIG}


def test_a_record_by_hand(engine, draw, monkeypatch):
    texts = [["3.", "3.", "14.", "="], ["8.", "1.", "1.", "8."], ["", "+", "0", "1"]]
    greedy = [["3."], ["1."], ["7"]]
    monkeypatch.setattr(
        evaluate,
        "generate",
        lambda p, q, r, n, *_, **__: samples_of(texts if n > 1 else greedy),
    )
    (records,) = draw([row(4), row(9, "7-9=", "8"), row(2, "0+0=", None)])
    first, tied, none = records
    assert first | {"samples": 0, "greedy": 0} == {
        "row": 4,
        "prompt": "1+2=",
        "gold": "3",
        "pseudo_label": "3",
        "majority_fraction": 0.5,
        "votes": {"3": 2, "4": 1},
        "majority_correct": True,
        "samples": 0,
        "greedy": 0,
    }
    assert first["samples"][2:] == [
        {"text": "14.", "answer": "4", "correct": False, "length": 3, "stopped": True},
        {"text": "=", "answer": None, "correct": False, "length": 1, "stopped": False},
    ]
    assert first["greedy"] == first["samples"][0]
    # Two votes each: the first seen wins, as for the majority judge.
    assert tied["pseudo_label"] == "8" and tied["majority_correct"] is True
    assert tied["greedy"]["correct"] is False
    # Nothing to read, and no gold to be held against.
    assert (none["pseudo_label"], none["majority_fraction"], none["votes"]) == (None, 0, {})
    assert none["majority_correct"] is None and none["greedy"]["correct"] is None
    assert {s["correct"] for s in none["samples"]} == {None}


def test_parts_are_written_whole_filled_up_and_in_order(engine, draw, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling_job, "SAMPLES_A_PART", 12)  # 3 rows of 4 samples
    rows = [row(i) for i in (8, 3, 5, 0, 9, 1, 2)]
    parts = list(draw(rows, tmp_path / "job", greedy=False))
    assert [[r["row"] for r in part] for part in parts] == [[8, 3, 5], [0, 9, 1], [2]]
    # The last is filled to three, so that the engine sees one shape.
    assert [call[0] for call in engine()] == [[8, 3, 5], [0, 9, 1], [2, 2, 2]]
    names = [f"part_0000{i}.jsonl" for i in range(3)]
    assert sorted(files(tmp_path / "job")) == names
    for name, part in zip(names, parts, strict=True):
        lines = (tmp_path / "job" / name).read_text().splitlines()
        assert [json.loads(line) for line in lines] == part


@pytest.mark.parametrize("dies_at", [1, 3, 4, 6])
def test_killed_anywhere_it_goes_on_to_the_same_bytes(engine, draw, tmp_path, monkeypatch, dies_at):
    monkeypatch.setattr(sampling_job, "SAMPLES_A_PART", 8)
    rows = [row(i) for i in range(6)]
    whole = list(draw(rows, tmp_path / "whole"))
    before = len(engine())
    assert before == 6  # three parts, each with a greedy text
    engine.dies_at = before + dies_at
    with pytest.raises(KeyboardInterrupt):
        list(draw(rows, tmp_path / "killed"))
    kept = files(tmp_path / "killed")
    assert len(kept) == (dies_at - 1) // 2  # what was begun is not there
    engine.dies_at = None
    before = len(engine())
    assert list(draw(rows, tmp_path / "killed")) == whole
    assert len(engine()) - before == 6 - 2 * len(kept)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    # And once it is all there, nothing is drawn.
    before = len(engine())
    assert list(draw(rows, tmp_path / "killed")) == whole and len(engine()) == before


def test_without_a_folder_nothing_is_kept(engine, draw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(list(draw([row(1)]))) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_engine_is_asked_for_what_was_asked(engine, draw, tiny, mesh1):
    list(draw([row(1)], sampling=Sampling(0.7), max_new_tokens=9))
    (_, n, _, how, rest), (_, one, _, greedy, _) = engine()
    assert (n, how, one, greedy) == (4, Sampling(0.7), 1, Sampling(0.0))
    assert rest["max_new_tokens"] == 9 and rest["stop_tokens"] == (15,)
    assert rest["cfg"] is tiny and rest["mesh"] is mesh1 and rest["config"] == RolloutConfig(8, 4)
    list(draw([row(1)], purpose="evaluation"))
    list(draw([row(1)], seed=6))
    keys = [jax.random.key_data(call[2]).tolist() for call in engine()[::2]]
    assert len({tuple(k) for k in keys}) == 3  # of purpose and of seed


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"samples": 5}, "samples: 4 -> 5"),
        ({"seed": 6}, "seed: 5 -> 6"),
        ({"sampling": Sampling(0.5)}, "sampling.temperature: 1.0 -> 0.5"),
        ({"max_new_tokens": 7}, "max_new_tokens: 6 -> 7"),
        ({"greedy": False}, "greedy: true -> false"),
        ({"rows": [row(1)]}, "rows.count: 2 -> 1"),
        ({"rows": [row(1), row(2, gold="4")]}, "rows.sha256"),
        ({"rows": [row(1), row(2, "1+3=")]}, "rows.sha256"),
        ({"params": {"w": jnp.ones(3).at[1].set(1.0000001)}}, "weights"),
        ({"purpose": "evaluation"}, "holds labels, not evaluation"),
    ],
)
def test_another_request_for_the_same_folder_is_refused(engine, draw, tmp_path, change, shown):
    list(draw([row(1), row(2)], tmp_path))
    before, asked = files(tmp_path), len(engine())
    with pytest.raises(UserError) as caught:
        draw(**({"rows": [row(1), row(2)], "folder": tmp_path} | change))
    assert shown in str(caught.value) and "another folder" in str(caught.value)
    assert "run-dir" not in str(caught.value)
    assert files(tmp_path) == before and len(engine()) == asked


def test_what_does_not_change_the_samples_may_change(engine, draw, tmp_path):
    list(draw([row(1)], tmp_path, told={"checkpoint": "a"}))
    list(draw([row(1)], tmp_path, told={"checkpoint": "b"}, rollout=RolloutConfig(4, 2)))
    assert len(engine()) == 2
    assert run_dir.read_config(tmp_path)["config"]["told"] == {"checkpoint": "b"}


def test_bad_places_and_rows_are_refused_before_anything_is_drawn(engine, draw, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").write_text("x")
    run_dir.create(tmp_path / "run", {"task": 1}, False)
    for where, words in (("file", "is a file"), ("papers", "not empty"), ("run", "holds a run")):
        with pytest.raises(UserError, match=words):
            draw([row(1)], tmp_path / where)
    with pytest.raises(UserError, match="row 1 comes twice"):
        draw([row(1), row(2), row(1)])
    with pytest.raises(UserError, match="0 rows"):
        draw([])
    assert engine() == []


@pytest.mark.parametrize("damage", ["cut", "other", "fewer"])
def test_a_damaged_part_is_named(engine, draw, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(sampling_job, "SAMPLES_A_PART", 4)
    list(draw([row(1), row(2)], tmp_path))
    part = tmp_path / "part_00001.jsonl"
    if damage == "cut":
        part.write_bytes(part.read_bytes()[:-20])
    elif damage == "other":
        part.write_bytes((tmp_path / "part_00000.jsonl").read_bytes())
    else:
        record = json.loads(part.read_text())
        part.write_text(json.dumps(record | {"samples": record["samples"][:-1]}) + "\n")
    with pytest.raises(UserError, match=r"part_00001\.jsonl"):
        list(draw([row(1), row(2)], tmp_path))


def test_jsonl_holds_any_text():
    texts = ["a\nb", "\u2028", "\ud800 half", "é", '"\\ud800"', "\x85"]
    lines = sampling_job.jsonl([{"text": text} for text in texts])
    assert lines.encode().count(b"\n") == len(texts)
    assert [json.loads(line)["text"] for line in lines.encode().split(b"\n")[:-1]] == texts


def test_the_weights_hash_sees_every_bit_place_and_shape():
    w = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    flipped = w.copy()
    flipped.view(np.uint32)[3, 5] ^= 1
    swapped = w.copy()
    swapped[0, 0], swapped[2, 1] = w[2, 1], w[0, 0]
    variants = [w, flipped, swapped, w.reshape(6, 4), -w, w.astype(jnp.bfloat16)]
    hashes = [sampling_job.weights_hash({"w": jnp.asarray(v)}) for v in variants]
    hashes.append(sampling_job.weights_hash({"v": jnp.asarray(w)}))
    assert len(set(hashes)) == len(hashes)
    assert sampling_job.weights_hash({"w": jnp.asarray(w)}) == hashes[0]


def test_the_weights_hash_is_of_the_weights_and_not_of_the_mesh(tiny, mesh1, mesh8):
    specs, rng = decoder.abstract_params(tiny), np.random.default_rng(0)
    arrays = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes(specs))
    hashes = [
        sampling_job.weights_hash(
            jax.tree.map(jax.device_put, arrays, sharding.tree_shardings(specs, mesh))
        )
        for mesh in (mesh1, mesh8)
    ]
    assert hashes[0] == hashes[1]


def test_the_size_of_a_part_changes_no_sample(tiny, mesh1, tmp_path, monkeypatch):
    """With the real engine: one part of 5 rows, and parts of 2, the last one filled up."""
    params = state.init_params(tiny, jax.random.key(1), mesh1)
    config = arithmetic.ArithmeticConfig(numbers=(4,), train_rows=1, held_out_rows=5)
    task = arithmetic.load_task(config, 0)
    found = []
    for limit in (1024, 8):
        monkeypatch.setattr(sampling_job, "SAMPLES_A_PART", limit)
        parts = sampling_job.draw(
            params,
            tiny,
            task,
            task.held_out,
            tmp_path / str(limit),
            purpose="evaluation",
            samples=4,
            greedy=True,
            seed=0,
            mesh=mesh1,
            rollout=RolloutConfig(slots=4, chunk=8),
            sampling=Sampling(),
            max_new_tokens=6,
        )
        found.append([record for part in parts for record in part])
        assert len(files(tmp_path / str(limit))) == {1024: 1, 8: 3}[limit]
    assert found[0] == found[1]
    texts = {s["text"] for record in found[0] for s in record["samples"]}
    assert len(texts) > 10  # or equality would say little
