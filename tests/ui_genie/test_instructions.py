"""Instructions in other words: what is refused, by hand; a real HTTP server with recorded answers; and
the whole loop with them."""

import json
import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from selfevolve_jax import run_dir
from selfevolve_jax.errors import UserError
from selfevolve_jax.llm.config import ModelConfig
from selfevolve_jax.ui_genie import instructions, trajectory
from selfevolve_jax.ui_genie.environment import Broken, Observation, State
from selfevolve_jax.ui_genie.instructions import Instruction, InstructionConfig, Worded, names
from selfevolve_jax.ui_genie.recipe import page_seeds
from tests.openai_server import Fault, OpenAIServer
from tests.ui_genie import pages
from tests.ui_genie.test_rounds import RECIPE, bytes_of, ran

pytestmark = pytest.mark.usefixtures("home")


def page(seed=0, text='Click on the "Ok" button.', task="click-button"):
    return Instruction(task, seed, text, "page", text, None, 2)


def said(*texts):
    """An answer that says so of instructions 1, 2, …"""
    rows = ({"number": i, "instruction": text} for i, text in enumerate(texts, 1))
    return "\n".join(map(json.dumps, rows))


def expanded(wanted, *answers, known=(), special=()):
    made, counts = instructions.expand(
        wanted, lambda questions: answers, "m", {"click-button": known}, special
    )
    return [one.text for one in made], dict(counts)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('Click on the "Ok" button.', ["Ok"]),
        ("Click button ONE, then click button TWO.", ["ONE", "TWO"]),
        ("Select zNsu, aB1 and click Submit.", ["zNsu", "aB1", "Submit"]),
        ("Focus into the 3rd input textbox.", ["3rd"]),
        ("7 boxes. Tick them.", ["7"]),
        ("ONE is it. Press it", ["ONE"]),  # a sentence's first word may have a name's capitals
        ('Use the textbox to enter "Zoe" and press "Search".', ["Zoe", "Search"]),
        ("Click on the red colored box.", []),  # no name, so the writer's word alone
    ],
)
def test_what_must_be_kept(text, kept):
    assert names(text) == kept
    assert instructions.refusal(f"now {' '.join(kept)} please", text, ()) is None
    for name in kept:
        others = " ".join(["please", *(each for each in kept if each != name)])
        assert instructions.refusal(others, text, ()) == "lost_name"
        # a part of a longer word is not the name
        assert instructions.refusal(f"{others} x{name}x", text, ()) == "lost_name"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Press Ok, please.", None),
        ("  Press Ok, please.\n", None),  # spaces at its ends are no part of it
        ("", "empty"),
        (" ?! ", "empty"),
        ("Press Ok" + "!" * 393, "too_long"),
        ("Press Ok" + "!" * 392, None),
        ("Press\nOk", "unprintable"),
        ("Press \x1b[31mOk", "unprintable"),
        ("Press Ok <|+|>", "special"),
        ("Press Ok </tool_call>", "special"),
        ("Press Ok [INST]", "special"),
        ("Press Ok if 1 < 2", None),
        ("Press ok", "lost_name"),
        ("click on the 'Ok' BUTTON", "duplicate"),
        ("Hit Ok", "duplicate"),
    ],
)
def test_why_a_text_is_refused(text, why):
    known = {instructions.normalised(t) for t in ('Click on the "Ok" button.', "hit: OK")}
    assert instructions.refusal(text, 'Click on the "Ok" button.', known, ["[INST]"]) == why


@pytest.mark.parametrize(
    ("answer", "read", "counts"),
    [
        (said("a", "b"), {0: "a", 1: "b"}, {}),
        (json.dumps([{"number": 2, "instruction": "b"}]), {1: "b"}, {}),
        (f"```json\n{said('a')}\n```", {0: "a"}, {"not_json": 2}),
        ("Sure! Press Ok", {}, {"not_json": 1}),
        ("", {}, {}),
        (said("a")[:-3] + "\n", {}, {"not_json": 1}),
        ('{"number": 1}', {}, {"fields": 1}),
        ('{"number": 1, "instruction": "a", "app": "b"}', {}, {"fields": 1}),
        ('{"number": "1", "instruction": "a"}', {}, {"fields": 1}),
        ('{"number": true, "instruction": "a"}', {}, {"fields": 1}),
        ('{"number": 1, "instruction": ["a"]}\n7', {}, {"fields": 2}),
        ('{"number": 0, "instruction": "a"}', {}, {"unknown_number": 1}),
        ('{"number": 3, "instruction": "a"}', {}, {"unknown_number": 1}),
        (f"{said('a')}\n{said('b')}", {0: "a"}, {"twice": 1}),
        ("[" * 100_000, {}, {"not_json": 1}),
    ],
)
def test_an_answer_is_read_strictly(answer, read, counts):
    found = Counter()
    assert instructions.parse(answer, 2, found) == read
    assert found == counts


def test_an_expansion_by_hand():
    wanted = [page(0), page(1, 'Click on the "No" button.'), page(2), page(3)]
    answer = said("Press Ok", "Press Ok", "press ok.", "Hit the Ok")
    texts, counts = expanded(wanted, answer, known=["hit the OK!"])
    assert texts == ["Press Ok"]
    # "No" is lost; the third differs from the first by case alone, which loses the name first
    assert counts == {"asked": 4, "expanded": 1, "lost_name": 2, "duplicate": 1}
    [one], _ = instructions.expand(wanted[:1], lambda _: [said("Press Ok")], "m", {})
    assert one == replace(wanted[0], text="Press Ok", source="expanded", by="m")
    assert one.of == 'Click on the "Ok" button.'


def test_the_same_words_are_new_in_another_task():
    wanted = [page(0), page(0, task="click-dialog")]
    assert expanded(wanted, said("Press Ok", "Press Ok"))[1] == {"asked": 2, "expanded": 2}


def test_questions_are_of_eight_and_an_answer_belongs_to_its_own():
    wanted = [page(i, f'Click on "n{i}".') for i in range(9)]
    asked = []

    def ask(questions):
        asked.extend(questions)
        return [None, said("Press n8")]

    made, counts = instructions.expand(wanted, ask, "m", {})
    assert [one.seed for one in made] == [8]
    assert counts == {"asked": 9, "expanded": 1, "refused_question": 8}
    assert len(asked) == 2 and '\n8. [click-button] Click on "n7".\n' in asked[0]
    assert '\n1. [click-button] Click on "n8".\n' in asked[1] and "\n2. " not in asked[1]


def test_nothing_to_ask_asks_nothing():
    def ask(questions):
        raise AssertionError

    assert instructions.expand([], ask, "m", {}) == ([], {})


rows = st.fixed_dictionaries(
    {"number": st.integers(-1, 4), "instruction": st.text(max_size=12).map("Ok {}".format)}
)


@settings(max_examples=100)
@given(st.lists(rows, max_size=6).map(lambda each: "\n".join(map(json.dumps, each))) | st.text())
@example("null")
@example("[1, null, {}]")
def test_whatever_an_answer_holds(answer):
    """Nothing raises, nothing is taken that a prompt may not hold, and every instruction that was asked
    for is accounted for once."""
    wanted = [page(i) for i in range(3)]
    made, counts = instructions.expand(wanted, lambda _: [answer], "m", {})
    texts = [instructions.normalised(one.text) for one in made]
    assert len(set(texts)) == len(texts) == counts["expanded"]
    assert all(one.text.isprintable() and "Ok" in one.text for one in made)
    unread = ("asked", "not_json", "fields", "unknown_number", "twice")
    assert sum(n for why, n in counts.items() if why not in unread) == 3


def test_the_screens_tell_other_goals():
    start, other = State(pages.TASKS[0], 4), State(pages.TASKS[0], 5)
    screens = Worded(pages.Pages(broken=lambda s: s.seed == 6), {start: "Hit ONE"})
    plain = pages.Pages().observe([start, other])
    seen = screens.observe([start, other, State(pages.TASKS[0], 6)])
    assert isinstance(seen[0], Observation) and isinstance(plain[0], Observation)
    assert seen[0] == replace(plain[0], goal="Hit ONE") and seen[1] == plain[1]
    assert isinstance(seen[2], Broken)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"by": "endpoint"}, "needs a model"),
        ({"by": "someone"}, "'someone' is unknown"),
        ({"share": 0.0}, "share=0.0"),
        ({"share": float("nan")}, "share=nan"),
        ({"temperature": -1.0}, "temperature=-1.0"),
    ],
)
def test_a_config_that_cannot_be(config, match):
    with pytest.raises(UserError, match=match):
        InstructionConfig(**config)


# The endpoint: a real server.


def at(server, **options):
    options = {"backoff_s": 0.001, "attempts": 3} | options
    return ModelConfig(model="m", base_url=server.url, **options)


def test_what_may_pass_is_asked_again_and_what_is_refused_is_counted():
    answers = [Fault("429"), Fault("malformed JSON"), said("Press Ok"), Fault("400")]
    answers += [Fault("empty answer"), Fault("null answer"), "word " * 10]
    wanted = [page(i) for i in range(4 * instructions.AT_ONCE)]
    with OpenAIServer(answers) as server:
        made, counts = instructions.expand(wanted, instructions.ask_endpoint(at(server)), "m", {})
        assert len(server.seen) == 6
    assert [(one.seed, one.text) for one in made] == [(0, "Press Ok")]
    eight = instructions.AT_ONCE
    assert counts == {
        **{"asked": 4 * eight, "expanded": 1, "refused_question": eight},
        "unanswered": 7 + 2 * eight,
    }


@pytest.mark.parametrize("fault", ["500", "hang", "no reply", "half a body", "not a completion"])
def test_an_endpoint_that_is_down_is_told(fault):
    with OpenAIServer([Fault(fault)] * 2) as server:
        ask = instructions.ask_endpoint(at(server, timeout_s=0.2, attempts=2))
        with pytest.raises(UserError, match=r"m at http.*--resume goes on from this round"):
            ask(["a question"])
        assert len(server.seen) == 2


def test_a_wrong_key_is_told_at_once(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "the-wrong-key-0123")
    with OpenAIServer([], key="right") as server:
        with pytest.raises(UserError, match="SOME_KEY") as told:
            instructions.check_endpoint(at(server, key_env="SOME_KEY"))
        assert "the-wrong-key-0123" not in str(told.value)


# The loop.

ONE_ARM = replace(RECIPE, arms=("co_evolution",))


def in_other_words(_, body):
    """Of every instruction of the question, with all of its names."""
    asked = re.findall(r"^(\d+)\. \[.*?\] (.*)$", body["messages"][0]["content"], re.MULTILINE)
    rows = [
        {"number": int(i), "instruction": f"Would you {text[0].lower()}{text[1:-1]}, way {i}?"}
        for i, text in asked
    ]
    return "\n".join(map(json.dumps, rows)) or "OK"


def by_endpoint(server, **changes):
    told = InstructionConfig("endpoint", 1.0, endpoint=at(server, attempts=1))
    return replace(ONE_ARM, instructions=told, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    with OpenAIServer(in_other_words) as server:
        ran(folder, pages.Pages(), by_endpoint(server))
        return folder, [each["body"]["messages"][0]["content"] for each in server.seen]


def found_in(folder):
    return [t for chunk in sorted(folder.iterdir()) for t in trajectory.read(chunk)]


def test_a_round_is_told_in_other_words(finished):
    folder, asked = finished
    assert len(asked) == 2  # the look beforehand, and round 2's four starts in one question
    arm = folder / "arms" / "co_evolution"
    assert not (arm / "round-1" / instructions.INSTRUCTIONS).exists()
    told = instructions.read(arm / "round-2")
    starts = [State(t, s) for t in RECIPE.tasks for s in page_seeds(3, RECIPE.seed, RECIPE.starts)]
    assert [one.state for one in told] == starts
    # of click-button-sequence all pages say the same, which is new words with each number
    assert {(one.source, one.by, one.round) for one in told} == {("expanded", "m", 2)}
    assert [one.text for one in told] == [
        f"Would you click{one.of[5:-1]}, way {i}?" for i, one in enumerate(told, 1)
    ]
    counts = json.loads((arm / "round-2" / instructions.COUNTS).read_text())
    assert counts == {"by": "m", "counts": {"asked": 4, "expanded": 4}}
    goals = {one.state: one.text for one in told}
    explored = found_in(arm / "round-2" / "explored")
    assert explored and all(t.goal == goals[State(t.task, t.seed)] for t in explored)
    # what is held out is asked in the pages' own words
    assert not any("Would" in t.goal for t in found_in(arm / "round-2" / "test"))
    rows = (arm / "round-2" / "reward_rows.jsonl").read_text()
    assert "Would you click" in rows


def test_an_endpoint_lost_in_mid_run_costs_nothing(finished, tmp_path):
    folder, _ = finished
    with OpenAIServer(["OK"]) as server:  # answers beforehand, and fails afterwards
        with pytest.raises(UserError, match="--resume goes on"):
            ran(tmp_path / "run", pages.Pages(), by_endpoint(server))
        assert not list((tmp_path / "run").rglob(instructions.INSTRUCTIONS))
    with OpenAIServer(in_other_words) as server:  # at another address
        ran(tmp_path / "run", pages.Pages(), by_endpoint(server), resume=True)
    one, other = bytes_of(tmp_path / "run"), bytes_of(folder)
    del one[run_dir.CONFIG], other[run_dir.CONFIG]
    assert one == other
    # All is there, so a run that goes on asks nobody: the server is gone.
    ran(tmp_path / "run", pages.Pages(), by_endpoint(server), resume=True)


def test_an_endpoint_that_is_not_there_is_told_before_anything_is_made(tmp_path):
    with OpenAIServer([]) as server:
        recipe = by_endpoint(server)
    with pytest.raises(UserError, match="start a server there"):
        ran(tmp_path / "run", pages.Pages(), recipe)
    assert not (tmp_path / "run").exists()


def test_an_agent_that_cannot_write_leaves_the_pages_words(tmp_path):
    """The tiny agent writes calls, and nothing of it is taken; which is counted, and stops nothing."""
    recipe = replace(
        RECIPE, arms=("no_reward",), instructions=InstructionConfig("agent", share=0.5)
    )
    ran(tmp_path / "run", pages.Pages(), recipe)
    place = tmp_path / "run" / "arms" / "no_reward" / "round-2"
    told = instructions.read(place)
    assert len(told) == 4 and all(one.text == one.of and one.source == "page" for one in told)
    counts = json.loads((place / instructions.COUNTS).read_text())
    assert counts["by"] == "agent" and counts["counts"]["asked"] == 2
    assert counts["counts"]["unanswered"] == 2 and "expanded" not in counts["counts"]


def test_a_run_without_them_says_nothing_of_them(tmp_path):
    recipe = replace(RECIPE, arms=("no_reward",), rounds=1)
    ran(tmp_path / "run", pages.Pages(), recipe)
    assert "instructions" not in run_dir.read_config(tmp_path / "run")["config"]
    assert not list((tmp_path / "run").rglob("instructions.json*"))


def test_what_failed_before_is_told_as_it_was_then():
    start, lost = State(pages.TASKS[0], 4), State(pages.TASKS[0], 6)
    shown = pages.Pages(broken=lambda s: s == lost)
    fresh = State(pages.TASKS[0], 5)
    found = instructions.own([start, fresh, lost], shown, 3, {start: "Hit ONE", lost: "Hit it"})
    assert [(one.state, one.text, one.of, one.source) for one in found] == [
        (start, "Hit ONE", "Click button ONE.", "retried"),
        (fresh, "Click button TWO.", "Click button TWO.", "page"),
    ]


def test_instructions_that_are_damaged_are_told(tmp_path):
    line = (
        '{"task": "a", "seed": 0, "text": "b", "source": "who", "of": "c", "by": null, "round": 2}'
    )
    (tmp_path / instructions.INSTRUCTIONS).write_text(line)
    with pytest.raises(UserError, match="line 1: source 'who' is unknown"):
        instructions.read(tmp_path)
