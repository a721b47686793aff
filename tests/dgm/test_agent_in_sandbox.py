"""End to end: the agent's code in a real sandbox, behind the real gateway, on an HTTP server that plays
recorded answers and breaks by name."""

import dataclasses
import itertools
import json

import pytest

from selfevolve_jax.dgm import coding, self_modify
from selfevolve_jax.dgm.contract import BudgetSpent, Unavailable
from selfevolve_jax.dgm.first_agent import load_agent
from selfevolve_jax.dgm.llm.config import BudgetConfig, ModelsConfig
from selfevolve_jax.dgm.llm.models import open_models
from selfevolve_jax.dgm.sandbox.choose import open_box
from selfevolve_jax.llm.config import ModelConfig
from tests.dgm.agents_at_work import OneTask, call, diagnosed, parent
from tests.openai_server import Fault, OpenAIServer

pytestmark = pytest.mark.sandbox

AGENT = load_agent()
REPO = {"a.txt": b"old", "d/b.txt": b"b"}
LIMITS = dataclasses.replace(coding.LIMITS, wall_s=60.0)
QUICK = dataclasses.replace(self_modify.LIMITS, wall_s=60.0)


@pytest.fixture(scope="module")
def box():
    box = open_box("bubblewrap", workers=1)
    yield box
    box.close()


@pytest.fixture
def at(tmp_path):
    """answers -> (server, models) until the test ends."""
    opened, numbers = [], itertools.count()

    def open_at(answers, budget=None):
        server = OpenAIServer(answers).__enter__()
        model = ModelConfig("m", base_url=server.url, attempts=2, backoff_s=0.01, timeout_s=2.0)
        config = ModelsConfig(model, budget=budget or BudgetConfig())
        models = open_models(config, tmp_path / str(next(numbers)))
        opened.append((server, models))
        return server, models

    yield open_at
    for server, models in opened:
        server.__exit__()
        models.close()


def solve(at, box, answers, agent=AGENT, limits=LIMITS, **options):
    server, models = at(answers, **options)
    return server, coding.solve(agent, "do it", REPO, box, models, limits)


def outputs(server):
    """The last message of each request but the first."""
    return [request["body"]["messages"][-1]["content"] for request in server.seen[1:]]


def test_it_edits_runs_and_stops(box, at):
    look = "cat a.txt; id -u; echo ${HOME}; ls /root /home 2>&1; echo 1 > d/c.txt; rm d/b.txt"
    server, got = solve(
        at,
        box,
        [
            call("edit", command="replace", path="a.txt", file_text="new\n"),
            call("bash", command=look),
            "Done.",
        ],
    )
    assert got.reason == "" and not got.empty and got.refused == ()
    assert got.repo == {"a.txt": b"new\n", "d/c.txt": b"1\n"}
    assert got.usage.calls == 3 and got.usage.tokens_in > 100
    assert got.cpu_s > 0 and "[end]\ndone" in got.log
    seen = outputs(server)[1]
    assert seen.startswith("new\n") and "/work" in seen
    assert "No such file" in seen or "cannot access" in seen


def test_its_own_tests_pass_in_there(box, at):
    server, models = at([call("bash", command="python3 -m unittest discover -s tests"), "Done."])
    got = coding.solve(AGENT, "test yourself", AGENT, box, models, LIMITS)
    (said,) = outputs(server)
    assert "OK" in said and "FAILED" not in said and "Ran 0 tests" not in said
    assert got.empty and got.repo == AGENT


def test_links_are_refused_by_name(box, at):
    change = "ln -s /etc/passwd link; mkfifo pipe; ln a.txt hard; mkdir .git; ln -s / .git/x"
    _, got = solve(at, box, [call("bash", command=change), "Done."])
    assert {path for path, _ in got.refused} == {"link", "pipe", "hard", "a.txt"}
    assert got.repo == {"d/b.txt": b"b"} and "link: " in got.reason and not got.empty


def test_an_empty_answer_ends_it_with_nothing_changed(box, at):
    server, got = solve(at, box, [Fault("empty answer")])
    assert got.empty and got.reason == "" and got.repo == REPO and len(server.seen) == 1


def test_ten_megabytes_of_text_are_cut_and_end_it(box, at):
    _, got = solve(at, box, [call("bash", command="echo x > x"), Fault("10 MB")])
    assert got.repo == {**REPO, "x": b"x\n"} and got.reason == ""
    assert len(got.log) < coding.KEPT_CHARS + 1000


def test_a_tool_call_that_is_malformed_is_told_to_the_model(box, at):
    broken = call("bash")
    broken["tool_calls"][0]["function"]["arguments"] = '{"command": "ls'
    server, got = solve(at, box, [broken, "I give up."])
    assert "not JSON" in outputs(server)[0] and got.empty and got.reason == ""


def test_a_tool_that_hangs_is_ended(box, at):
    path = "tools/bash.py"
    agent = {
        **AGENT,
        path: AGENT[path].replace(b"TIMEOUT_SECONDS = 120.0", b"TIMEOUT_SECONDS = 1.0"),
    }
    hang = "trap '' TERM HUP INT; setsid sleep 1000 & while :; do sleep 1; done"
    server, got = solve(at, box, [call("bash", command=hang), "Done."], agent)
    assert "[ended after 1 seconds]" in outputs(server)[0] and got.reason == ""


def test_an_agent_that_hangs_is_ended_and_its_edits_stay(box, at):
    limits = dataclasses.replace(LIMITS, wall_s=4.0)
    hang = call("bash", command="echo kept > kept.txt; sleep 100")
    _, got = solve(at, box, [hang], limits=limits)
    assert got.reason.endswith("wall time")
    assert got.repo == {**REPO, "kept.txt": b"kept\n"} and "[tool call bash]" in got.log


def test_an_edit_that_does_not_apply_changes_nothing(box, at):
    edit = call("edit", command="create", path="a.txt", file_text="x")
    server, got = solve(at, box, [edit, "Well."])
    assert outputs(server)[0].startswith("Error") and got.empty


@pytest.mark.parametrize(
    "name", ["500", "503", "429", "hang", "half a body", "malformed JSON", "no choices"]
)
def test_an_endpoint_that_fails_is_unavailable_and_not_the_agents_fault(box, at, name):
    with pytest.raises(Unavailable):
        solve(at, box, lambda number, body: Fault(name))


@pytest.mark.parametrize("name", ["500", "429", "half a stream", "malformed JSON", "no reply"])
def test_a_fault_that_passes_is_not_seen(box, at, name):
    answers = [Fault(name), call("bash", command="echo 1 > a.txt"), Fault(name), "Done."]
    _, got = solve(at, box, answers)
    assert got.reason == "" and got.repo == {**REPO, "a.txt": b"1\n"}


def test_a_prompt_that_is_too_long_is_the_agents_to_shorten(box, at):
    long = call("bash", command="seq 20000")
    _, got = solve(at, box, [long, call("bash", command="seq 9"), Fault("400"), "Done."])
    assert got.reason == "" and "[context too long]" in got.log and "[end]\ndone" in got.log


def test_a_run_whose_budget_is_spent_stops_and_a_job_whose_budget_is_does_not(box, at):
    loop = lambda number, body: call("bash", command=":")  # noqa: E731
    with pytest.raises(BudgetSpent):
        solve(at, box, loop, budget=BudgetConfig(tokens=3000))
    _, got = solve(at, box, loop, budget=BudgetConfig(session_calls=3))
    assert got.reason == "exit code 1" and "3 calls are spent" in got.log and got.usage.calls == 3


def test_an_answer_without_native_calls_works(box, at):
    text = json.dumps({"name": "bash", "arguments": {"command": "echo 1 > a.txt"}})
    _, got = solve(at, box, [f"```tool\n{text}\n```", "Done."])
    assert got.repo == {**REPO, "a.txt": b"1\n"}


EDIT = AGENT["tools/edit.py"].decode()
NEW_EDIT = (
    EDIT.replace('"enum": ["view",', '"enum": ["str_replace", "view",')
    .replace(
        'path: str, file_text: str | None = None) -> str:\n    file = Path(path)\n',
        'path: str, file_text: str | None = None, old_str: str = "", new_str: str = "") -> str:\n'
        "    file = Path(path)\n"
        '    if command == "str_replace":\n'
        '        text = file.read_text(encoding="utf-8")\n'
        "        if text.count(old_str) != 1:\n"
        '            return f"Error: old_str is there {text.count(old_str)} times."\n'
        '        file.write_text(text.replace(old_str, new_str), encoding="utf-8")\n'
        '        return f"{path} written."\n',
    )
    .replace(
        '            "required": ["command", "path"],',
        '            "required": ["command", "path"],  # old_str, new_str: for str_replace',
    )
)  # fmt: skip


def propose(at, box, answers, tree=AGENT, **options):
    server, models = at(answers, **options)
    proposer = self_modify.SelfModification(OneTask(), QUICK)
    return server, proposer.propose(parent(tree), 0, box, models)


def test_a_child_that_gained_a_command_uses_it_as_the_maker(box, at):
    assert NEW_EDIT.count("str_replace") == 3
    server, made = propose(
        at,
        box,
        [
            diagnosed(problem_description="Add str_replace to the edit tool."),
            call("edit", command="view", path="tools/edit.py"),
            call("edit", command="replace", path="tools/edit.py", file_text=NEW_EDIT),
            call("bash", command="python3 coding_agent.py --help && echo STARTS"),
            "Done.",
        ],
    )
    assert made.reason == "" and made.flags == ()
    assert made.tree == {**AGENT, "tools/edit.py": NEW_EDIT.encode()}
    assert made.usage.calls == 5
    assert "Add str_replace to the edit tool." in server.seen[1]["body"]["messages"][0]["content"]
    assert "STARTS" in outputs(server)[-1]

    change = call("edit", command="str_replace", path="README.md", old_str="# The coding agent",
                  new_str="# The better coding agent")  # fmt: skip
    server, grandchild = propose(at, box, [diagnosed(), change, "Done."], made.tree)
    assert grandchild.reason == ""
    readme = AGENT["README.md"].replace(b"# The coding agent", b"# The better coding agent")
    assert grandchild.tree == {**made.tree, "README.md": readme}

    _, refused = propose(at, box, [diagnosed(), change, "Done."], AGENT)
    assert refused.tree is None, "the first agent does not have the command"
    assert refused.reason.startswith("empty change")
    assert "unexpected keyword argument 'old_str'" in refused.log


def test_a_diagnosis_that_never_parses_is_a_failed_proposal(box, at):
    server, made = propose(at, box, ["nonsense", Fault("empty answer"), Fault("10 MB")])
    assert made.tree is None and made.reason.startswith("no diagnosis")
    assert "nonsense" in made.raw and made.usage.calls == 3 and len(server.seen) == 3
    assert len(made.raw) < 100_000


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("true", "empty change"),
        ("echo 'def f(:' > new.py", "does not compile: exit code 1"),
        ("echo 'import nothing_at_all' > tools/new.py", "does not start: exit code 1"),
        (
            "echo 'import time; time.sleep(99)' > tools/new.py",
            "does not start: ended by the sandbox",
        ),
        ("ln -s /etc/passwd p", "files that an agent may not hold: p (a symbolic link)"),
        ("cp /bin/true tool", "tool is not text"),
    ],
)
def test_what_is_no_agent_is_refused(box, at, monkeypatch, change, why):
    limits = dataclasses.replace(self_modify.CHECK_LIMITS, wall_s=3.0)
    monkeypatch.setattr(self_modify, "CHECK_LIMITS", limits)
    _, made = propose(at, box, [diagnosed(), call("bash", command=change), "Done."])
    assert made.tree is None and made.reason.startswith(why), made.reason


def test_an_endpoint_that_fails_in_the_middle_is_no_failed_proposal(box, at):
    change = call("bash", command="echo > x.md")
    for good in ([], [diagnosed()], [diagnosed(), change]):
        answers = lambda n, body, good=good: good[n] if n < len(good) else Fault("500")  # noqa: E731
        with pytest.raises(Unavailable):
            propose(at, box, answers)
