"""The whole path with models: recipe, controller, sandboxes, the agent's own code, gateway, and a real
HTTP server that plays recorded answers; undisturbed, and with one fault at a known call."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfevolve_jax.dgm import archive, events, trees
from selfevolve_jax.dgm.benchmarks.open import BenchmarkConfig
from selfevolve_jax.dgm.contract import Usage
from selfevolve_jax.dgm.llm.config import BudgetConfig, ModelsConfig
from selfevolve_jax.dgm.recipe import DGMRecipe
from selfevolve_jax.dgm.run import run
from selfevolve_jax.dgm.selection import SelectionConfig
from selfevolve_jax.dgm.staged import StagesConfig
from selfevolve_jax.errors import UserError
from selfevolve_jax.llm.config import ModelConfig
from selfevolve_jax.llm.endpoint import PLAIN
from tests.dgm.agents_at_work import call
from tests.dgm.recorded_model import SKILL, Asked, Recorded, tasks, understood
from tests.openai_server import Fault, OpenAIServer

pytestmark = pytest.mark.sandbox

EASY, HARD = (task.id for task in tasks(2, 0))  # an agent of skill 0 solves EASY, of skill 1 both
NEEDS = {EASY: 0, HARD: 1}
# Preflight; agent 0: 3 + 2; diagnosis and self-modification: 1 + 3; agent 1: 3 + 3.
CALLS = 1 + 5 + 4 + 6
PRICES = {"price_in": 1.0, "price_out": 4.0}  # dollars a million tokens


def recipe(url: str, budget: BudgetConfig | None = None, **changes: Any) -> DGMRecipe:
    """Two tasks, one child. changes: of the model, or of the recipe."""
    of_model = {"attempts": 2, "backoff_s": 0.01, "timeout_s": 60.0, **PRICES}
    of_model |= {name: changes.pop(name) for name in [*changes] if hasattr(ModelConfig, name)}
    given = DGMRecipe(
        benchmark=BenchmarkConfig("human_eval", train=2, held_out=0, agent_s=120.0),
        models=ModelsConfig(
            ModelConfig("m", base_url=url, **of_model), budget=budget or BudgetConfig()
        ),
        generations=1,
        children=1,
        stages=StagesConfig(sizes=()),
        selection=SelectionConfig(way="last"),
        sandbox="bubblewrap",
    )
    return replace(given, **changes)


def lines(place: Path) -> list[dict[str, Any]]:
    return events.read(place / "calls.jsonl")[0]


def of_arm(place: Path) -> list[dict[str, Any]]:
    return events.read(place / "arms" / "dgm" / events.NAME)[0]


def told(place: Path) -> dict[int, Any]:
    """The archive, without what time and money it took."""
    free = {"usage": Usage()}
    return {
        node.id: (
            replace(node, time=0.0, seconds=0.0, by_split={}, **free),
            sorted((replace(e, wall_s=0.0, cpu_s=0.0, **free) for e in node.evaluations), key=repr),
        )
        for node in archive.fold(of_arm(place)).values()
    }


def spent(what: Any) -> Usage:
    return sum((Usage(**each["usage"]) for each in what if "usage" in each), Usage())


def same_cost(usage: Usage, calls: int, tokens_in: int, tokens_out: int) -> None:
    assert (usage.calls, usage.tokens_in, usage.tokens_out) == (calls, tokens_in, tokens_out)
    assert usage.dollars == pytest.approx(tokens_in * 1e-6 + tokens_out * 4e-6, rel=1e-9)


def books_agree(place: Path, model: Recorded) -> None:
    """What is logged is what the server counted, and each file has its line."""
    logged = [Usage(1, e["tokens_in"], e["tokens_out"], e["dollars"]) for e in lines(place)]
    totals = [sum(counts[i] for counts in model.counted.values()) for i in (0, 1)]
    same_cost(sum(logged, Usage()), len(logged), *totals)
    assert sorted(e["call"] for e in lines(place)) == list(range(1, len(logged) + 1))
    files = {str(path.relative_to(place)) for path in (place / "calls").rglob("*.gz")}
    assert files == {e["file"] for e in lines(place)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    place = tmp_path_factory.mktemp("whole") / "run"
    model = Recorded(NEEDS)
    with OpenAIServer(model) as server:
        summary = run(recipe(server.url), str(place))
    return place, model, summary


def test_an_undisturbed_run_is_what_it_is_by_hand(undisturbed):
    place, model, summary = undisturbed
    assert model.requests() == CALLS == len(lines(place))
    assert summary["arms"]["dgm"]["best"] == 1
    zero, one = archive.fold(of_arm(place)).values()
    assert {e.task: e.solved for e in zero.evaluations} == {EASY: True, HARD: False}
    assert {e.task: e.solved for e in one.evaluations} == {EASY: True, HARD: True}
    assert not any(e.empty for e in zero.evaluations + one.evaluations)
    assert (one.parent, one.entry in (HARD, "stochasticity")) == (0, True)
    assert "my improvement_proposal" in one.diagnosis
    books_agree(place, model)
    assert [e["outcome"] for e in lines(place)] == ["ok"] * CALLS
    same_cost(
        one.usage,
        4,
        *(model.counted["diagnosis"][i] + model.counted["self-modification"][i] for i in (0, 1)),
    )
    everything = spent(of_arm(place))
    assert everything.calls == CALLS - 1  # all but the preflight


def test_a_lineage_rises_and_the_held_out_task_is_measured_at_both_ends(tmp_path):
    chosen = tasks(3, 1)
    train = [task.id for task in chosen if task.split == "train"]
    (held_out,) = (task.id for task in chosen if task.split == "held_out")
    model = Recorded({train[0]: 0, train[1]: 1, train[2]: 2, held_out: 1})
    with OpenAIServer(model) as server:
        big = BenchmarkConfig("human_eval", train=3, held_out=1, agent_s=120.0)
        summary = run(recipe(server.url, benchmark=big, generations=2), str(tmp_path / "run"))
    figures = summary["arms"]["dgm"]
    assert figures["before"] == {"held_out": 0.0} and figures["after"] == {"held_out": 1.0}
    assert (figures["best"], figures["agents"]) == (2, 3)
    nodes = archive.fold(of_arm(tmp_path / "run"))
    solved = {n.id: sum(e.solved for e in n.on("train")) for n in nodes.values()}
    assert solved == {0: 1, 1: 2, 2: 3}
    assert [n.parent for n in nodes.values()] == [None, 0, 1]
    repository = tmp_path / "run" / "arms" / "dgm" / trees.NAME
    for node in nodes.values():  # the child of the child was made by the child's own code
        assert node.tree is not None
        prompt = trees.get(repository, node.tree)["prompts/task.md"].decode()
        assert prompt.startswith(SKILL * node.id + "You are a coding agent")
    steps = [Asked("self-modification", skill, 0) for skill in range(3)]
    assert [model.asked[step] for step in steps] == [1, 1, 0]
    # preflight; train of agents 0, 1, 2; two children; held out of 0 and of 2
    assert model.requests() == 1 + (3 + 2 + 2) + (3 + 3 + 2) + (3 + 3 + 3) + 2 * 4 + (2 + 3)
    books_agree(tmp_path / "run", model)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["arms"]["dgm"] == figures and (tmp_path / "run" / "report.html").exists()


def test_arms_share_one_book_and_who_makes_the_child_is_the_arms(tmp_path):
    """In `no_self_improvement` the first agent makes every child; a lineage grows all the same."""
    model, place = Recorded(NEEDS), tmp_path / "run"
    with OpenAIServer(model) as server:
        arms = ("dgm", "no_self_improvement")
        summary = run(recipe(server.url, generations=2, arms=arms), str(place))
    assert [summary["arms"][arm]["agents"] for arm in arms] == [3, 3]
    made = {skill: model.asked[Asked("self-modification", skill, 0)] for skill in range(3)}
    assert made == {0: 1 + 2, 1: 1, 2: 0}  # dgm: by agents 0 and 1; the other: by agent 0 twice
    assert model.asked[Asked("preflight", 0, 0)] == 1
    assert len(lines(place)) == 1 + 2 * (5 + 4 + 6 + 4 + 6)
    books_agree(place, model)
    for arm in arms:
        nodes = archive.fold(events.read(place / "arms" / arm / events.NAME)[0])
        assert [n.parent for n in nodes.values()] == [None, 0, 1]
        repository = place / "arms" / arm / trees.NAME
        for node in nodes.values():
            assert node.tree is not None
            prompt = trees.get(repository, node.tree)["prompts/task.md"].decode()
            assert prompt.startswith(SKILL * node.id + "You are")


def play(tmp_path: Path, asked: Asked, answers: list[Any], **changes: Any) -> tuple[Path, Recorded]:
    """A run to its end, where these answers come first at one known request."""
    model, place = Recorded(NEEDS, {asked: answers}), tmp_path / "run"
    with OpenAIServer(model) as server:
        run(recipe(server.url, **changes), str(place))
    return place, model


CODING = Asked(EASY, 0, 1)  # the second call of the first agent's first task
MODIFYING = Asked("self-modification", 0, 1)
DIAGNOSING = Asked("diagnosis", 0, 0)


@pytest.mark.parametrize(
    ("fault", "asked"),
    [
        ("429", CODING),
        ("429", DIAGNOSING),
        ("500", DIAGNOSING),
        ("500", MODIFYING),
        ("hang", MODIFYING),
        ("no reply", CODING),
        ("half a stream", CODING),
        ("half a body", DIAGNOSING),
        ("malformed JSON", MODIFYING),
        ("no choices", CODING),
    ],
)
def test_a_fault_that_passes_is_tried_again_and_leaves_no_trace_but_the_attempt(
    tmp_path, undisturbed, fault, asked
):
    place, model = play(tmp_path, asked, [Fault(fault)], timeout_s=5.0 if fault == "hang" else 60.0)
    assert told(place) == told(undisturbed[0])
    assert spent(of_arm(place)) == spent(of_arm(undisturbed[0]))
    assert not [e for e in of_arm(place) if e["event"] == "unavailable"]
    assert model.requests() == CALLS + 1 and model.asked[asked] == 2
    assert sorted(e["attempts"] for e in lines(place)) == [1] * (CALLS - 1) + [2]
    assert [e["outcome"] for e in lines(place)] == ["ok"] * CALLS
    if fault != "no choices":  # that one is an answer to the server, which counts it
        books_agree(place, model)


@pytest.mark.parametrize(
    ("asked", "again"),
    # What an unavailable job is asked once more, from its beginning: the task's calls so far; the
    # diagnosis; diagnosis and self-modification so far.
    [(CODING, 2), (DIAGNOSING, 1), (MODIFYING, 3)],
)
def test_an_endpoint_that_is_down_for_one_job_has_it_leased_again_and_counts_once(
    tmp_path, undisturbed, asked, again
):
    model, place = Recorded(NEEDS), tmp_path / "run"
    left = iter(
        range(3)
    )  # both tries of the call, and the plain request that asks whether it lives

    def broken(number, body):
        answer = model(number, body)
        hit = understood(body) == asked or (body["messages"] == PLAIN["messages"] and number > 0)
        return Fault("503") if hit and next(left, None) is not None else answer

    with OpenAIServer(broken) as server:
        run(recipe(server.url), str(place))
    assert told(place) == told(undisturbed[0])
    assert spent(of_arm(place)) == spent(of_arm(undisturbed[0]))
    (lost,) = [e for e in of_arm(place) if e["event"] == "unavailable"]
    job = ("evaluation", 0, EASY) if asked == CODING else ("child", 1, None)
    assert (lost["what"], lost["agent"], lost["task"]) == job and "503" in lost["reason"]
    down = [e for e in lines(place) if e["outcome"].startswith("down")]
    assert [e["attempts"] for e in down] == [2, 1] and not any(e["dollars"] for e in down)
    # what was answered before the endpoint failed was paid for, and is on the books
    answered = [e for e in lines(place) if e["outcome"] == "ok"]
    assert len(answered) == CALLS + again - 1
    same_cost(
        sum((Usage(1, e["tokens_in"], e["tokens_out"], e["dollars"]) for e in answered), Usage()),
        len(answered),
        sum(e["tokens_in"] for e in answered),
        sum(e["tokens_out"] for e in answered),
    )


def test_an_endpoint_that_stays_down_ends_the_run_and_a_resume_finishes_it(tmp_path, undisturbed):
    model, place, gone = Recorded(NEEDS), tmp_path / "run", [True]

    def broken(number, body):
        return Fault("500") if gone[0] and number > 0 else model(number, body)

    with OpenAIServer(broken) as server:
        with pytest.raises(UserError, match=r"3 times in a row: .*HTTP 500.*--resume") as error:
            run(recipe(server.url), str(place))
        assert error.value.exit_code == 2
        found = of_arm(place)
        assert found[-1]["event"] == "stopped" and "HTTP 500" in found[-1]["reason"]
        assert not [e for e in found if e["event"] == "evaluated"]
        gone[0] = False
        run(recipe(server.url), str(place), resume=True)
    assert told(place) == told(undisturbed[0])


def test_a_request_that_the_server_cannot_take_is_the_agents_own_failure(tmp_path):
    """Both tries fail, a plain request is answered, and one more try fails: so it is the request."""
    place, _ = play(tmp_path, Asked(EASY, 0, 0), [Fault("500")] * 3)
    zero = archive.fold(of_arm(place))[0]
    (easy,) = (e for e in zero.evaluations if e.task == EASY)
    assert easy.empty and not easy.solved and "exit code 1" in easy.reason
    log = (place / "arms" / "dgm" / easy.files / "log.txt").read_text()
    assert "the model's server fails at this request" in log and "127.0.0.1" not in log
    assert easy.usage.calls == 2  # the two that were asked for; not our plain request
    outcomes = [e["outcome"].split(":")[0] for e in lines(place) if EASY in e["purpose"]]
    assert outcomes[:3] == ["down", "ok", "down"]
    assert not [e for e in of_arm(place) if e["event"] == "unavailable"]


def test_a_prompt_that_is_too_long_is_the_agents_own_failure(tmp_path):
    place, _ = play(tmp_path, Asked(EASY, 0, 0), [Fault("400")] * 9)
    zero = archive.fold(of_arm(place))[0]
    (easy,) = (e for e in zero.evaluations if e.task == EASY)
    assert easy.empty and not easy.solved
    assert "out of context" in (place / "arms" / "dgm" / easy.files / "log.txt").read_text()


def test_an_empty_answer_ends_the_agent_with_nothing_done(tmp_path):
    place, model = play(tmp_path, Asked(EASY, 0, 0), [Fault("empty answer")])
    zero = archive.fold(of_arm(place))[0]
    (easy,) = (e for e in zero.evaluations if e.task == EASY)
    assert easy.empty and "as it was given" in easy.reason
    assert easy.usage.calls == 1
    assert [e["outcome"] for e in lines(place)].count("empty") == 1
    assert model.requests() == CALLS - 2  # of its 3 calls one was made


def test_empty_diagnoses_are_a_failed_child_with_what_was_said(tmp_path):
    model, place = Recorded(NEEDS), tmp_path / "run"
    junk = iter([Fault("empty answer"), Fault("null answer"), '{"log_summarization": "half'])

    def odd(number, body):
        return next(junk) if understood(body).what == "diagnosis" else model(number, body)

    with OpenAIServer(odd) as server:
        summary = run(recipe(server.url), str(place))
    zero, one = archive.fold(of_arm(place)).values()
    assert one.tree is None and one.usage.calls == 3 and zero.children == 0
    assert one.reason.startswith("no diagnosis: answer 1: it is empty; answer 2: it is empty; ")
    assert "answer 3: it is not JSON" in one.reason
    raw = (place / "arms" / "dgm" / one.files / "raw.txt").read_text()
    assert '"half' in raw and raw.count("[answer ") == 3
    assert not one.evaluations and summary["arms"]["dgm"]["best"] == 0
    assert len(lines(place)) == 1 + 5 + 3


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        # an edit of a file that is not there, and a command that finds no such text
        (
            [
                call("edit", command="replace", path="prompts/tusk.md", file_text="x"),
                call("bash", command="grep -q 'text that is nowhere' prompts/task.md"),
                "done",
            ],
            ("prompts/tusk.md is no file", "exit code 1"),
        ),
        # calls that are none
        (
            [
                call("patch", text="--- a\n+++ b\n"),
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "c",
                            "type": "function",
                            "function": {"name": "edit", "arguments": '{"command": "repl'},
                        }
                    ],
                },
                "```tool\n{not a call\n```",
            ],
            ("there is no tool 'patch'", "the arguments are not JSON", "the call is not"),
        ),
    ],
    ids=["not there", "malformed"],
)
def test_an_edit_that_does_not_apply_is_a_failed_child(tmp_path, answers, said):
    model, place = Recorded(NEEDS), tmp_path / "run"

    def odd(number, body):
        asked = understood(body)
        if asked.what != "self-modification":
            return model(number, body)
        return answers[asked.step] if asked.step < len(answers) else "done"

    with OpenAIServer(odd) as server:
        run(recipe(server.url), str(place))
    zero, one = archive.fold(of_arm(place)).values()
    assert one.tree is None and one.reason == "empty change: the agent left its code as it was"
    log = (place / "arms" / "dgm" / one.files / "log.txt").read_text()
    for words in said:
        assert words in log
    assert "my improvement_proposal" in one.diagnosis and zero.children == 0
    raw = (place / "arms" / "dgm" / one.files / "raw.txt").read_text()
    assert "my improvement_proposal" in raw


def test_a_child_that_does_not_start_is_a_failed_one(tmp_path):
    breaks = call("bash", command="echo 'def (' >> coding_agent.py")
    place, _ = play(tmp_path, MODIFYING, [breaks])
    one = archive.fold(of_arm(place))[1]
    assert one.tree is None and one.reason.startswith("does not compile")
    assert "SyntaxError" in one.reason and not one.evaluations


@pytest.mark.parametrize("asked", [CODING, DIAGNOSING])
def test_ten_megabytes_of_text_are_paid_for_and_harm_nothing(tmp_path, undisturbed, asked):
    place, _ = play(tmp_path, asked, [Fault("10 MB")])
    (cut,) = [e for e in lines(place) if e["outcome"] == "cut"]
    assert cut["tokens_out"] == 2_000_000
    assert sum(f.stat().st_size for f in (place / "calls").rglob("*.gz")) < 1 << 20
    zero, one = archive.fold(of_arm(place)).values()
    if asked == CODING:  # the text calls no tool, so the agent has done; its edit was right
        assert told(place)[0] == told(undisturbed[0])[0]
        (easy,) = (e for e in zero.evaluations if e.task == EASY)
        assert easy.usage.calls == 2 and easy.usage.tokens_out >= 2_000_000
        log = place / "arms" / "dgm" / easy.files / "log.txt"
        assert log.stat().st_size < 1 << 20
    else:  # asked again
        assert told(place)[1] == told(undisturbed[0])[1]
        assert one.usage.calls == 5 and one.usage.tokens_out > 2_000_000
        assert one.usage.dollars > 8.0
