"""Entries, the question, and what is taken for an answer."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfevolve_jax.dgm import diagnosis
from selfevolve_jax.dgm.contract import Task, Unavailable
from selfevolve_jax.dgm.diagnosis import CONTEXT, EMPTY, STOCHASTIC, Entry
from selfevolve_jax.dgm.first_agent import load_agent
from tests.dgm.agents_at_work import OneTask, Played, diagnosed, failed, parent

SOLVED = failed(solved=True, reason="", tests={})
DRAWS = 4000


def shares(*results):
    attempts = parent({}, *results).attempts
    drawn = Counter(diagnosis.choose_entry(attempts, seed).name for seed in range(DRAWS))
    return {name: count / DRAWS for name, count in drawn.items()}


def near(shares, **expected):
    # 4 standard deviations of a share of 4,000 draws are at most 0.032
    names = {"empty": EMPTY, "stochastic": STOCHASTIC, "context": CONTEXT}
    expected = {names.get(name, name): share for name, share in expected.items()}
    assert shares.keys() == expected.keys()
    assert shares == pytest.approx(expected, abs=0.032)


def test_an_unsolved_task_is_drawn_evenly_and_a_solved_one_never():
    near(shares(failed(), SOLVED, failed()), stochastic=0.25, p1=0.375, p3=0.375)


def test_empty_patches_apply_from_a_tenth_of_the_attempts_on():
    nothing = failed(empty=True)
    near(shares(nothing, *[SOLVED] * 9), empty=0.25, stochastic=0.75 * 0.25, p1=0.75**2)
    near(shares(nothing, *[SOLVED] * 10), stochastic=0.25, p1=0.75)


def test_the_context_applies_where_a_failed_log_speaks_of_it():
    full = failed(log="…\n[context trimmed]\n3 old tool outputs removed")
    near(
        shares(full, failed()),
        stochastic=0.25,
        context=0.75 * 0.25,
        p1=0.75**2 / 2,
        p2=0.75**2 / 2,
    )
    seen = [diagnosis.choose_entry(parent({}, full, failed()).attempts, s) for s in range(200)]
    assert {entry.task.id for entry in seen if entry.name == CONTEXT} == {"p1"}
    solved = failed(log=full.log, solved=True)
    near(shares(solved, failed()), stochastic=0.25, p2=0.75)


def test_a_log_that_talks_of_something_else_is_no_full_context():
    near(shares(failed(log="in this context the list [context] is fine")), stochastic=0.25, p1=0.75)


def test_where_all_is_solved_only_stochasticity_is_left():
    near(shares(SOLVED, SOLVED), stochastic=1.0)


def test_a_task_that_was_tried_twice_is_drawn_like_one_that_was_tried_once():
    once, twice = Task("once", "train", "g"), Task("twice", "train", "g")
    attempts = [(twice, failed(log="1")), (twice, failed(log="2")), (once, failed())]
    drawn = [diagnosis.choose_entry(attempts, seed) for seed in range(DRAWS)]
    tasks = Counter(entry.name for entry in drawn)
    assert tasks["once"] / DRAWS == pytest.approx(0.375, abs=0.032)
    assert {entry.result.log for entry in drawn if entry.name == "twice"} == {"1"}


def test_an_entry_is_a_function_of_its_arguments():
    attempts = parent({}, *[failed()] * 9).attempts
    names = [diagnosis.choose_entry(attempts, seed).name for seed in range(50)]
    assert names == [diagnosis.choose_entry(attempts, seed).name for seed in range(50)]
    assert len(set(names)) > 5


def entry_of(result, name="p1"):
    return Entry(name, Task("p1", "train", "g"), result)


def question(result=None, name="p1", tree=None, **options):
    tree = load_agent() if tree is None else tree
    return diagnosis.prompt(parent(tree), entry_of(result or failed(), name), OneTask(), **options)


def test_the_question_shows_code_task_log_answer_and_tests():
    text = question(failed(log="I RAN LS", answer="ANSWER=1", reason="1 of 2 tests failed"))
    for part in ("def forward(", "--- tools/bash.py", "describes p1", "I RAN LS", "ANSWER=1"):
        assert part in text
    assert "1 of 2 tests failed" in text and "failed: test_bad" in text
    assert "failed: test_good" not in text
    assert all(f'"{name}"' in text for name in diagnosis.FIELDS)


def test_private_tests_are_hidden_unless_they_are_asked_for():
    assert "SECRET" not in question()
    assert "SECRET of p1" in question(private_tests=lambda task: f"SECRET of {task.id}")


def test_general_entries_say_what_they_are_about():
    assert "In 1 of 1 of its tasks" not in question(name="p1")
    two = parent({}, failed(empty=True), SOLVED)
    text = diagnosis.prompt(two, entry_of(failed(), EMPTY), OneTask())
    assert "In 1 of 2 of its tasks this agent changed nothing" in text
    assert "answers differently each time" in question(name=STOCHASTIC)
    assert "outgrew the context" in question(name=CONTEXT)


def test_the_question_has_a_bounded_size():
    huge = "x" * 5_000_000
    tests = {f"{number}-{huge[:1000]}": False for number in range(5000)}
    tree = {"coding_agent.py": b"small", "big.py": huge.encode(), "tools/a.py": b"tool"}
    text = question(failed(log=huge, answer=huge, reason=huge, tests=tests), tree=tree)
    assert len(text) < 300_000
    assert "--- coding_agent.py\nsmall" in text and "--- tools/a.py\ntool" in text
    assert "left out: big.py (5000000 characters)" in text and "and 4900 more failed" in text


def ask(*answers):
    models = Played(chats=answers)
    found = diagnosis.diagnose(parent(load_agent()), entry_of(failed()), OneTask(), models)
    return models, found


@pytest.mark.parametrize("frame", ["{}", "```json\n{}\n```", "Here:\n\n```\n{}\n```\nThat's it.",
                                   "<think>\n{{not this}}\n</think>\n{}", "\n {} \n"])  # fmt: skip
def test_an_answer_with_the_five_fields_is_read_at_once(frame):
    models, found = ask(frame.format(diagnosed()))
    assert found.diagnosis is not None and found.reason == ""
    assert found.diagnosis.problem_description == "my problem_description"
    assert found.usage.calls == 1 and "[answer 1]" in found.raw
    assert models.asked[0][0] == "diagnosis"
    assert models.asked[0][2] == "diagnosis of agent 7, try 1"


def test_code_inside_a_field_is_no_second_block():
    text = diagnosed(implementation_suggestion="Do\n```python\nx = {}\n```\nand\n```\ny\n```")
    assert diagnosis.parse(text).implementation_suggestion.startswith("Do\n```python")
    assert diagnosis.parse(f"```json\n{text}\n```") == diagnosis.parse(text)


BAD = {
    "": "it is empty",
    "  \n": "it is empty",
    "I think that the agent is fine.": "it is not JSON",
    diagnosed()[:-5]: "it is not JSON",
    diagnosed() + diagnosed(): "it is not JSON",
    "[1]": "it is not a JSON object",
    "[" * 50_000: "it is not JSON",
    '{"problem_description": "a"}': "it lacks implementation_suggestion, improvement_proposal",
    diagnosed(more=1): "fields that nobody asked for: more",
    diagnosed(problem_description=["a"]): "problem_description is not a text",
    diagnosed(problem_description=" "): "problem_description is not a text, or is blank",
    diagnosed(problem_description="\ud800"): "half of a character",
    "```json\n{}\n```\n```json\n{}\n```": "2 fenced blocks",
    "x" * 10_000_000: "it has 10000000 characters",
}


@pytest.mark.parametrize(("text", "why"), BAD.items(), ids=range(len(BAD)))
def test_an_answer_that_does_not_parse_says_why(text, why):
    with pytest.raises(ValueError, match=why):
        diagnosis.parse(text)


@given(st.text(max_size=300))
def test_no_text_does_anything_but_parse_or_say_why(text):
    with pytest.raises(ValueError, match="it is"):
        diagnosis.parse(text)


def test_a_bad_answer_is_asked_for_again_with_what_is_wrong():
    models, found = ask("nonsense", "", diagnosed())
    assert found.diagnosis is not None and found.usage.calls == 3
    assert found.usage.dollars == 1.5
    second, third = (messages for _, messages, _ in models.asked[1:])
    assert [m["role"] for m in second] == ["user", "assistant", "user"]
    assert second[1]["content"] == "nonsense" and "it is not JSON" in second[2]["content"]
    assert len(third) == 3 and "it is empty" in third[2]["content"]


def test_three_bad_answers_are_no_diagnosis_and_are_kept():
    models, found = ask("nonsense", json.dumps({"a": 1}), "y" * 10_000_000, diagnosed())
    assert found.diagnosis is None
    assert len(models.asked) == 3 and found.usage.calls == 3
    for reason in ("answer 1: it is not JSON", "answer 2: it lacks", "answer 3: it has 10000000"):
        assert reason in found.reason
    assert "nonsense" in found.raw and '{"a": 1}' in found.raw and len(found.raw) < 50_000


def test_halves_of_characters_in_a_raw_answer_can_be_written():
    _, found = ask("\ud800", "\ud800", "\ud800")
    found.raw.encode()


def test_an_endpoint_that_fails_is_no_failed_diagnosis():
    class Down(Played):
        def chat(self, role, messages, purpose):
            raise Unavailable("no endpoint")

    with pytest.raises(Unavailable):
        diagnosis.diagnose(parent({}), entry_of(failed()), OneTask(), Down())
