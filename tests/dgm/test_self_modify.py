"""The proposer that is driven by models, in plain processes: what becomes a child, and what does not
and why. In the sandbox, with the gateway: test_agent_in_sandbox.py."""

import dataclasses

import pytest

from selfevolve_jax.dgm import self_modify
from selfevolve_jax.dgm.contract import BudgetSpent, Unavailable
from selfevolve_jax.dgm.first_agent import load_agent
from selfevolve_jax.dgm.sandbox.job import SandboxError
from selfevolve_jax.errors import UserError
from tests.dgm.agents_at_work import (
    OneTask,
    PlainProcesses,
    Played,
    call,
    diagnosed,
    failed,
    parent,
)

AGENT = load_agent()
PROPOSER = self_modify.SelfModification(OneTask())


def propose(*answers, chats=None, box=None, **options):
    models = Played(answers, [diagnosed()] if chats is None else chats)
    whom = parent(AGENT, **options)
    return models, PROPOSER.propose(whom, 0, box or PlainProcesses(), models)


def test_the_parent_rewrites_itself_by_its_own_tools():
    models, made = propose(
        call("edit", command="create", path="prompts/more.md", file_text="Be brief.\n"),
        call("bash", command="python3 coding_agent.py --help > /dev/null && echo starts"),
        "Done.",
    )
    assert made.reason == ""
    assert made.tree == {**AGENT, "prompts/more.md": b"Be brief.\n"}
    assert made.flags == () and made.entry in ("p1", "stochasticity")
    assert "problem_description:\nmy problem_description" in made.diagnosis
    assert "[answer 1]" in made.raw and "[tool call edit]" in made.log
    assert made.usage.calls == 4 and made.usage.dollars == 0.5
    task = models.seen[0]["messages"][0]["content"]
    assert "my problem_description" in task and "my implementation_suggestion" in task
    assert "my log_summarization" not in task
    assert "starts" in models.seen[2]["messages"][-1]["content"]


def test_the_maker_makes_the_child_and_the_parent_is_what_changes():
    marked = {**AGENT, "prompts/task.md": b"I AM THE MAKER {task}"}
    models, made = propose(
        call("edit", command="create", path="x.md", file_text="x"), "Done.", maker=marked
    )
    assert models.seen[0]["messages"][0]["content"].startswith("I AM THE MAKER")
    assert made.tree == {**AGENT, "x.md": b"x"}


def test_braces_in_a_diagnosis_are_text():
    models, _ = propose("Done.", chats=[diagnosed(problem_description="{suggestion} {0} {")])
    assert "{suggestion} {0} {" in models.seen[0]["messages"][0]["content"]


def test_no_diagnosis_is_a_failed_proposal_and_the_maker_never_runs():
    box = PlainProcesses()
    models, made = propose(chats=["no", "", "{}", diagnosed()], box=box)
    assert made.tree is None and made.reason.startswith("no diagnosis: answer 1: it is not JSON")
    assert made.raw.count("[answer ") == 3 and made.usage.calls == 3
    assert box.jobs == [] and models.seen == []


CREATE = {"command": "create", "path": "new.py"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("true", "empty change: the agent left its code as it was"),
        ("mkdir __pycache__ && touch __pycache__/x.pyc", "empty change"),
        ("rm -rf ./*", "coding_agent.py is gone"),
        ("rm coding_agent.py", "coding_agent.py is gone"),
        ("echo 'def f(:' > new.py", "does not compile: exit code 1"),
        ("echo 'import nothing_at_all' > tools/new.py", "does not start: exit code 1"),
        ("rm llm.py", "does not start: exit code 1"),
        ("rm prompts/task.md", "does not start: exit code 1"),
        ("printf '\\xff\\xfe' > logo.bin", "logo.bin is not text"),
        ("printf 'a\\0b' > logo.txt", "logo.txt is not text"),
        ("head -c 300000 /dev/zero | tr '\\0' a > big.md", "big.md has 300000 bytes"),
        ("mkdir d; for i in $(seq 600); do echo > d/$i; done", "files; at most 500 are kept"),
        (
            "for i in $(seq 5); do head -c 250000 /dev/zero | tr '\\0' a > $i.md; done",
            "bytes in all; at most 1048576 are kept",
        ),
    ],
)
def test_what_is_no_agent_is_refused_with_the_reason(change, why):
    _, made = propose(call("bash", command=change), "Done.")
    assert made.tree is None and why in made.reason, made.reason
    assert made.diagnosis and made.raw and "[tool call bash]" in made.log and made.flags == ()


def test_why_it_does_not_start_is_said():
    _, made = propose(call("bash", command="echo 'import nothing_at_all' > tools/new.py"), "Done.")
    assert "No module named 'nothing_at_all'" in made.reason


def test_a_maker_that_fails_midway_says_so_where_nothing_came_of_it():
    _, made = propose()  # the server answers 500
    assert made.tree is None
    assert made.reason.endswith("as it was (the maker's run: exit code 1)")


def test_files_that_may_not_be_held_are_a_refusal():
    class WithLinks(PlainProcesses):
        def run(self, job):
            outcome = super().run(job)
            refused = (("repo/link", "a symbolic link"), ("repo/.git/x", "a fifo"))
            return dataclasses.replace(outcome, refused=refused)

    change = call("edit", command="create", path="x.md", file_text="x")
    _, made = propose(change, "Done.", box=WithLinks())
    assert made.tree is None
    assert made.reason == "files that an agent may not hold: link (a symbolic link)"


def test_a_child_that_touches_limits_is_a_child_with_flags():
    _, made = propose(
        call("bash", command="sed -i 's/STEPS = 60/STEPS = 900/' coding_agent.py"), "Done."
    )
    assert made.tree is not None and made.reason == ""
    (flag,) = made.flags
    assert "the bound MAX_STEPS is raised, 60 to 900" in flag


def test_a_sandbox_that_fails_says_nothing_of_the_child():
    class Fails(PlainProcesses):
        def __init__(self, at):
            super().__init__()
            self.at = at

        def run(self, job):
            if len(self.jobs) == self.at:
                raise SandboxError("its disk is gone")
            return super().run(job)

    change = call("edit", command="create", path="x.md", file_text="x")
    for at in (0, 1, 2):
        with pytest.raises(Unavailable, match="its disk is gone"):
            propose(change, "Done.", box=Fails(at))


@pytest.mark.parametrize("error", [Unavailable("down"), BudgetSpent("10 dollars")])
def test_a_session_that_fails_is_no_failed_proposal(error):
    class Fails(Played):
        def session(self, role, purpose):
            raise error

    models = Fails(chats=[diagnosed()])
    with pytest.raises(type(error)):
        PROPOSER.propose(parent(AGENT, failed()), 0, PlainProcesses(), models)


def test_without_a_model_there_is_nothing_to_do():
    with pytest.raises(UserError, match="needs a model"):
        PROPOSER.propose(parent(AGENT), 0, PlainProcesses(), None)
