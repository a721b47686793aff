"""The first agent's own code: as a tree, by its own tests, and against a real HTTP server on a unix
socket that plays recorded answers. Plain processes here; the sandbox in test_agent_in_sandbox.py."""

import ast
import json
import subprocess
import sys
import time

import pytest

from selfevolve_jax.dgm import coding
from selfevolve_jax.dgm.contract import Unavailable
from selfevolve_jax.dgm.first_agent import FOLDER, load_agent
from selfevolve_jax.dgm.sandbox.job import Outcome, SandboxError
from selfevolve_jax.errors import UserError
from tests import openai_server
from tests.dgm.agents_at_work import PlainProcesses, Played, call
from tests.openai_server import Fault

AGENT = load_agent()


def solve(*answers, agent=AGENT, repo=None, problem="do it", **options):
    models = Played(answers)
    repo = {"a.txt": b"old"} if repo is None else repo
    return models, coding.solve(agent, problem, repo, PlainProcesses(), models, **options)


def patched(path, old, new):
    assert AGENT[path].count(old) == 1
    return {**AGENT, path: AGENT[path].replace(old, new)}


def test_the_tree_is_the_folder_without_caches(tmp_path):
    assert {"coding_agent.py", "llm.py", "tools/bash.py", "prompts/task.md", "README.md"} < set(
        AGENT
    )
    assert AGENT["llm.py"] == (FOLDER / "llm.py").read_bytes()
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.pyc").write_bytes(b"")
    (tmp_path / "coding_agent.py").write_text("pass")
    assert load_agent(tmp_path) == {"coding_agent.py": b"pass"}
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="link is a link"):
        load_agent(tmp_path)
    with pytest.raises(UserError, match=r"no coding_agent\.py"):
        load_agent(tmp_path / "__pycache__")


def test_it_imports_the_standard_library_and_itself_alone():
    own = {"coding_agent", "llm", "tools"}
    for path, data in AGENT.items():
        for node in ast.walk(ast.parse(data)) if path.endswith(".py") else ():
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                assert top in own or top in sys.stdlib_module_names, (path, name)


def test_its_own_tests_pass():
    command = [sys.executable, "-B", "-m", "unittest", "discover", "-s", "tests"]
    run = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "OK" in run.stderr and "Ran 0 tests" not in run.stderr


def test_it_edits_runs_and_stops():
    models, got = solve(
        call("edit", command="replace", path="a.txt", file_text="new\n"),
        call(
            "bash", command="cat a.txt; mkdir -p __pycache__ d; touch __pycache__/x.pyc; pwd > d/b"
        ),
        "Done.",
        "never asked for",
    )
    assert got.reason == "" and not got.empty and got.refused == ()
    assert set(got.repo) == {"a.txt", "d/b"}
    assert got.repo["a.txt"] == b"new\n"
    assert got.repo["d/b"].endswith(b"/repo\n")
    assert got.usage.calls == 3
    first, second, third = models.seen
    roles = ["user", "assistant", "tool", "assistant", "tool"]
    assert [message["role"] for message in third["messages"]] == roles
    assert {t["function"]["name"] for t in first["tools"]} == {"bash", "edit"}
    assert first["messages"][0]["content"].endswith("do it\n")
    assert third["messages"][-1]["content"].startswith("new\n")
    assert second["messages"][2]["tool_call_id"] == "c1"
    for marker in (
        "[tool call edit]",
        "[tool output bash]",
        "[model, step 3]\nDone.",
        "[end]\ndone",
    ):
        assert marker in got.log


def test_calls_written_as_text_work_as_well():
    text = json.dumps({"name": "bash", "arguments": {"command": "echo hi > hi.txt; echo seen"}})
    models, got = solve(f"I'll look.\n```tool\n{text}\n```", "Done.")
    assert got.repo["hi.txt"] == b"hi\n"
    last = models.seen[1]["messages"][-1]
    assert last["role"] == "user" and last["content"].startswith("Output of bash:\nseen")


def test_a_server_without_tools_is_asked_without_them(monkeypatch):
    answer = openai_server._Handler.answer
    refusal = {"error": {"message": "tools param requires --jinja flag"}}

    def without_tools(handler, content, body):
        handler.reply(500, refusal) if "tools" in body else answer(handler, content, body)

    monkeypatch.setattr(openai_server._Handler, "answer", without_tools)
    models, got = solve("refused", "Done.")
    assert got.reason == "" and got.empty and "[end]\ndone" in got.log
    assert ["tools" in body for body in models.seen] == [True, False]


@pytest.mark.parametrize("name", ["empty answer", "null answer"])
def test_an_empty_answer_ends_it_with_nothing_changed(name):
    models, got = solve(Fault(name), "never asked for")
    assert got.empty and got.reason == "" and got.repo == {"a.txt": b"old"}
    assert len(models.seen) == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("10 MB", "the answer is longer than"),
        ("malformed JSON", "not an answer of the chat protocol"),
        ("no choices", "not an answer of the chat protocol"),
        ("not a completion", "not an answer of the chat protocol"),
        ("half a body", "not an answer of the chat protocol"),
        ("500", "HTTP status 500"),
    ],
)
def test_an_answer_that_is_none_ends_it_and_says_why(name, said):
    models, got = solve(call("bash", command="echo b > a.txt"), Fault(name), "never asked for")
    assert got.reason == "exit code 1"
    assert said in got.log and "Traceback" not in got.log
    assert got.repo == {"a.txt": b"b\n"}, "what was done before stays"
    assert len(models.seen) == 2


def test_an_answer_that_never_ends_is_given_up():
    for name in ("hang", "trickle", "endless"):
        _, got = solve(Fault(name), limits=coding.Limits(wall_s=0.5))
        assert got.reason == "exit code 1" and "[model error]" in got.log, name


def test_a_prompt_that_is_too_long_is_trimmed_until_there_is_no_room():
    models, got = solve(call("bash", command="seq 20000"), *[Fault("400")] * 30)
    assert got.reason == "" and "[context too long]" in got.log
    assert "[end]\nout of context" in got.log
    assert len(models.seen) < 10
    models, got = solve(call("bash", command="seq 20000"), call("bash", command="seq 9"),
                        Fault("400"), "Done.")  # fmt: skip
    assert "[context trimmed]" in got.log and "[end]\ndone" in got.log
    texts = [m["content"] for m in models.seen[3]["messages"] if m["role"] == "tool"]
    assert texts[0].startswith("[removed") and texts[1].startswith("1\n2\n")


def test_malformed_arguments_are_told_to_the_model_and_mended_in_the_history():
    broken = call("bash", command="ls")
    broken["tool_calls"][0]["function"]["arguments"] = '{"command": "ls'
    models, got = solve(broken, "I give up.")
    assert got.reason == "" and got.empty
    _, said, output = models.seen[1]["messages"]
    assert "not JSON" in output["content"]
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == {}


def test_a_tool_that_hangs_is_ended_and_the_agent_goes_on():
    agent = patched("tools/bash.py", b"TIMEOUT_SECONDS = 120.0", b"TIMEOUT_SECONDS = 0.5")
    hang = "trap '' TERM; echo before; sleep 600; echo after > a.txt"
    models, got = solve(call("bash", command=hang), "Done.", agent=agent)
    assert got.empty and got.reason == ""
    output = models.seen[1]["messages"][-1]["content"]
    assert output == "before\n\n[ended after 0 seconds]"


def test_endless_output_is_cut():
    agent = patched("tools/bash.py", b"TIMEOUT_SECONDS = 120.0", b"TIMEOUT_SECONDS = 1.0")
    models, _ = solve(call("bash", command="yes"), "Done.", agent=agent)
    output = models.seen[1]["messages"][-1]["content"]
    assert len(output) < 21_000 and "bytes left out" in output


def test_an_edit_that_does_not_apply_is_an_output_and_changes_nothing():
    models, got = solve(
        call("edit", command="create", path="a.txt", file_text="x"),
        call("edit", command="replace", path="b.txt", file_text="x"),
        call("edit", command="str_replace", path="a.txt", file_text="x"),
        call("edit", command="replace", path="a.txt", file_text="\ud800"),
        call("edit", command="replace", path="a.txt"),
        "Done.",
    )
    assert got.empty and got.repo == {"a.txt": b"old"}
    outputs = [body["messages"][-1]["content"] for body in models.seen[1:]]
    assert all(text.startswith("Error") for text in outputs) and len(outputs) == 5


def test_the_wall_time_that_it_is_told_ends_it():
    started = time.monotonic()
    limits = coding.Limits(wall_s=1.0)
    agent = patched("coding_agent.py", b"MAX_STEPS = 60", b"MAX_STEPS = 10**6")
    models = Played()
    models.server.answers = lambda number, body: call("bash", command="sleep 0.2")
    got = coding.solve(agent, "do it", {"a": b""}, PlainProcesses(), models, limits)
    # Between two calls, or in the midst of one on a busy machine.
    assert "[end]\nout of time" in got.log or "the answer took too long" in got.log
    assert time.monotonic() - started < 60


def test_collect_names_what_is_compared_and_copied():
    _, got = solve(
        call("bash", command="echo 1 > src/a; echo 1 > other; mkdir target; echo 1 > target/x"),
        "Done.",
        repo={"src/a": b"0", "other": b"0"},
        collect=("src",),
    )
    assert got.repo == {"src/a": b"1\n"} and not got.empty
    _, got = solve("Done.", repo={"src/a": b"0", "other": b"0"}, collect=("src/a",))
    assert got.empty and got.repo == {"src/a": b"0"}
    _, got = solve("Done.", repo={"a": b"0", ".git/HEAD": b"0"})
    assert got.empty and got.repo == {"a": b"0"}


class Gives:
    """A box whose outcome is known."""

    name, unenforced = "gives", ()

    def __init__(self, outcome):
        self.outcome = outcome

    def run(self, job):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def close(self):
        pass


def outcome(**changes):
    fields = dict(exit_code=0, ended="", stdout=b"", stderr=b"", truncated=False, files={})
    return Outcome(**fields | dict(refused=(), wall_s=9.0, cpu_s=1.0) | changes)


def attempt(**changes):
    return coding.solve(AGENT, "", {"a": b"0"}, Gives(outcome(**changes)), None)


def test_how_a_run_ended_is_said():
    got = attempt(exit_code=None, ended="wall time", files={"repo/a": b"1", "agent.log": b"hello"})
    assert got.repo == {"a": b"1"} and not got.empty
    assert got.reason == "ended by the sandbox after 9 s: wall time"
    assert got.log == "hello"
    lost = attempt(exit_code=None, ended="disk", stderr=b"no room")
    assert lost.repo is None and lost.empty and lost.log == "[stderr]\nno room"
    assert attempt(files={}).repo == {}, "the agent ended by itself and removed everything"


def test_refused_files_are_named_and_are_no_empty_answer():
    refused = (
        ("repo/a", "a symbolic link"),
        ("repo/__pycache__/x", "a fifo"),
        ("agent.log", "big"),
    )
    got = attempt(files={"repo/b": b""}, refused=refused)
    assert got.refused == (("a", "a symbolic link"),) and not got.empty
    assert got.reason == "a: a symbolic link"
    assert not attempt(files={"repo/a": b"0"}, refused=(("repo/link", "a symbolic link"),)).empty
    assert attempt(files={"repo/a": b"0"}, refused=(("repo/.git/x", "a fifo"),)).empty


def test_a_sandbox_that_fails_is_unavailable():
    with pytest.raises(Unavailable, match="no disk"):
        coding.solve(AGENT, "", {}, Gives(SandboxError("no disk")), None)


def test_a_long_log_is_cut_in_its_middle():
    got = attempt(files={"agent.log": b"a" * 500_000 + b"end"})
    assert len(got.log) < 201_000 and got.log.startswith("aaa") and got.log.endswith("end")
    assert "[300003 characters left out]" in got.log
