"""reasoning-gym tasks. Most tests generate in this process: a child costs seconds to start."""

import json
import sys

import numpy as np
import pytest

from selfevolve_jax.errors import UserError
from selfevolve_jax.tasks import gym

pytest.importorskip("reasoning_gym")


@pytest.fixture
def here(monkeypatch):
    """Generation in this process, through the same JSON that a child would be sent and send."""

    def generate(request):
        return json.loads(json.dumps(gym.generate(json.loads(json.dumps(request)))))

    monkeypatch.setattr(gym, "_generate_in_child", generate)


@pytest.fixture
def make(char_tokenizer):
    def task(name="chain_sum", **options):
        return gym.gym_task(name, char_tokenizer(), **{"size": 30, "held_out": 10} | options)

    return task


def questions(rows):
    return [row.prompt for row in rows]


def test_rows_carry_prompt_gold_and_plain_metadata(here, make):
    task = make(options={"min_terms": 2, "max_terms": 2}, suffix=" Go.")
    assert task.name == "reasoning-gym/chain_sum"
    assert (len(task.train), len(task.held_out)) == (30, 10)
    assert [r.id for r in (*task.train, *task.held_out)] == list(range(40))
    for row in (*task.train, *task.held_out):
        assert row.prompt.endswith(" Go.")
        # chain_sum writes its sum into the metadata: gold must be its value.
        assert eval(row.extra["metadata"]["expression"], {"__builtins__": {}}) == int(row.gold)
        assert row.extra["metadata"]["num_terms"] == 2
        assert json.loads(json.dumps(row.extra)) == row.extra
    assert (task.answer.pattern, task.answer.equivalence) == ("boxed", "exact")
    assert task.counts == {"prompt_too_long": 0, "no_gold": 0}


def test_same_seed_same_rows_other_seed_other_rows(here, make):
    assert make(seed=1).train == make(seed=1).train
    first, second = make(seed=1), make(seed=2)
    # Neighbouring seeds of reasoning-gym itself would share all entries but one.
    assert not set(questions(first.train)) & set(questions(second.train))


@pytest.mark.parametrize("seed", range(5))
def test_held_out_is_distinct_and_disjoint_even_where_questions_are_few(here, make, seed):
    few = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}  # under 200 questions
    task = make(size=60, held_out=40, seed=seed, options=few)
    train, held_out = questions(task.train), questions(task.held_out)
    assert len(train) == 60 and len(held_out) == 40
    assert len(set(held_out)) == 40 and not set(train) & set(held_out)


def test_too_few_questions_are_refused(here, make):
    few = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    with pytest.raises(UserError, match=r"too few distinct questions.*of the 2000 held_out rows"):
        make(size=1, held_out=2000, options=few)


def test_no_held_out_rows_on_request(here, make):
    assert make(held_out=0).held_out == []


def test_tasks_without_one_right_answer_are_counted(here, make):
    task = make("graph_color", size=2, held_out=1)
    assert all(row.gold is None for row in task.train) and task.counts["no_gold"] == 3


def test_over_long_prompts_are_counted(here, make):
    everything = make(max_prompt_tokens=10_000, suffix="")
    lengths = sorted(len(r.prompt_tokens) for r in (*everything.train, *everything.held_out))
    limit = lengths[20]
    task = make(max_prompt_tokens=limit, suffix="")
    assert task.counts["prompt_too_long"] == sum(n > limit for n in lengths) > 0
    assert len(task.train) + len(task.held_out) == sum(n <= limit for n in lengths)


def test_unknown_task_names_close_ones(here, make):
    with pytest.raises(UserError, match=r"no task 'chainsum'; close: chain_sum"):
        make("chainsum")
    with pytest.raises(UserError, match="no task '%%%'; no name is close"):
        make("%%%")


def test_unknown_option_lists_those_there_are(here, make):
    with pytest.raises(UserError, match=r"chain_sum' has no option 'terms'; it has: .*max_terms"):
        make(options={"terms": 3})
    with pytest.raises(UserError, match="no option 'seed'"):  # ours to set
        make(options={"seed": 3})


@pytest.mark.parametrize("bad", [{"size": 0}, {"held_out": -1}, {"seed": -1}])
def test_impossible_sizes_are_refused(make, bad):
    with pytest.raises(UserError, match=next(f"{k}={v}" for k, v in bad.items())):
        make(**bad)


def test_options_must_be_plain(make):
    with pytest.raises(UserError, match="must be plain"):
        make(options={"min_terms": object()})


def test_not_installed_names_the_command(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match="uv sync --extra reasoning-gym"):
        make()


def test_metadata_becomes_plain_data():
    value = {1: (2, {"b", "a"}), "x": np.arange(2), "y": np.float32(0.5), "z": 1 + 2j, "n": None}
    plain = {"1": [2, ["a", "b"]], "x": [0, 1], "y": 0.5, "z": "(1+2j)", "n": None}
    assert gym._plain(value) == plain == json.loads(json.dumps(gym._plain(value)))


def test_the_child_gives_the_same_problems_whatever_the_parents_hash_seed(make, monkeypatch):
    """word_ladder walks sets of strings: two hash seeds soon differ there."""
    made = []
    for hash_seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        made.append(make("word_ladder", size=20, held_out=1).train)
    assert len(made[0]) == 20 and made[0] == made[1]


def test_the_childs_refusals_come_back_as_user_errors(make):
    with pytest.raises(UserError, match=r"refused options .*max_terms must be >= min_terms"):
        make(options={"min_terms": 5, "max_terms": 2})
