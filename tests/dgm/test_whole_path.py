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
from selfevolve_jax.llm.config import ModelConfig
from tests.dgm.openai_server import OpenAIServer
from tests.dgm.recorded_model import SKILL, Asked, Recorded, tasks

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
            replace(node, time=0.0, seconds=0.0, evaluations=[], **free),
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
    assert [e["call"] for e in lines(place)] == sorted(e["call"] for e in lines(place))
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
