"""Program repair in real sandboxes: repairs, forged answers, hangs, budgets, children."""

from __future__ import annotations

import json

import pytest

from selfevolve_jax.dgm.contract import Parent
from selfevolve_jax.dgm.repair import benchmark as module
from selfevolve_jax.dgm.repair import quixbugs, quixbugs_adapter
from selfevolve_jax.dgm.repair.agent import evolve
from selfevolve_jax.dgm.repair.benchmark import Repair, benchmark, grade
from selfevolve_jax.dgm.repair.proposer import Genetic, donor_library, first_agent
from selfevolve_jax.dgm.repair.tasks import Case, Program, make, transfer_programs
from selfevolve_jax.dgm.sandbox.choose import open_box

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module")
def box():
    box = open_box(workers=1)
    yield box
    box.close()


RIGHT = "def double(x):\n    return 2 * x\n"
CASES = tuple(Case([x], 2 * x) for x in (0, 1, 2, 3, 5, 8, 13, 21))


def task(faulty, right=RIGHT, cases=CASES):
    return make("t", "train", "g", Program("double", right, "", cases), faulty, "")


TASK = task("def double(x):\n    x = x + 1\n    return 2 * x\n")


def test_the_first_agent_mends_a_statement_too_many(box):
    result = Repair([TASK], budget=30).evaluate(first_agent(), TASK.task, 1, box)
    assert result.solved and result.partial == 1.0 and not result.empty and result.reason == ""
    assert result.answer.startswith("def double(x):\n") and result.answer != TASK.source
    assert list(result.tests) == list(TASK.cases) and all(result.tests.values())
    assert "visible 0 -> 4 of 4" in result.log and result.cpu_s > 0


def test_the_same_seed_gives_the_same_attempt(box):
    t = next(t for t in benchmark().tasks if t.id.startswith("gcd-"))
    one, two = (benchmark().evaluate(first_agent(), t, 5, box) for _ in range(2))
    assert (one.answer, one.log, one.reason) == (two.answer, two.log, two.reason)


def agent(repair):
    return {"repair.py": repair.encode()}


def test_the_runner_stops_an_agent_at_its_budget(box):
    greedy = """
import sys
sys.path.insert(0, sys.argv[1])
import trial
task = trial.Trial(sys.argv[1])
done = 0
for i in range(1000):
    try:
        task.passed(f"def double(x):\\n    return {i}\\n")
        done += 1
    except trial.OutOfBudget:
        pass
print(done, task.tried)
"""
    result = Repair([TASK], budget=12).evaluate(agent(greedy), TASK.task, 1, box)
    assert result.log == "12 12\n" and result.empty and result.reason == "no answer"


def test_hung_candidates_cost_an_agent_no_more_than_their_time(box):
    hung = "def double(x):\n    while x == x:\n        x = x + 1\n    return 2 * x\n"
    t = task(hung)
    result = Repair([t], budget=10).evaluate(first_agent(), t.task, 1, box)
    assert "Found" in result.log and result.solved  # without the loop it is right


def test_an_answer_that_swallows_time_outs_ends_by_its_limit(box):
    endless = """
def double(x):
    while True:
        try:
            while True:
                pass
        except BaseException:
            continue
"""
    tests, why, outcome = grade(box, TASK, endless)
    assert not any(tests.values()) and "CPU time" in why and outcome.ended == "CPU time"


def test_a_slow_case_fails_alone(box):
    slow = "def double(x):\n    while x == 5:\n        pass\n    return 2 * x\n"
    tests, why, _ = grade(box, TASK, slow)
    assert [name for name, ok in tests.items() if not ok] == ["case-04"]
    assert why == "fails 1 of 8 cases: case-04 (too slow)"


FORGED = {
    "leaves with 0": "import os\nos._exit(0)\n",
    "leaves in a call": "import os\ndef double(x):\n    os._exit(0)\n",
    "raises SystemExit": "def double(x):\n    raise SystemExit(0)\n",
    "prints": "print('PASSED', *range(8))\ndef double(x):\n    print('PASSED')\n",
    "equals everything": """
class Everything(int):
    def __eq__(self, other):
        return True
    __hash__ = int.__hash__
def double(x):
    return Everything(-1)
""",
    "writes to all descriptors": """
import json, os
def double(x):
    for fd in range(1, 64):
        for case in range(8):
            try:
                os.write(fd, json.dumps([f"case-{case:02d}", True, True]).encode() + b"\\n")
            except OSError:
                pass
    os._exit(0)
""",
    "patches builtins": """
import builtins, json, sys
for name in ("all", "any", "map", "abs", "max", "isinstance"):
    setattr(builtins, name, lambda *_: True)
def double(x):
    return True
""",
    "patches the runner": """
import sys
main = sys.modules["__main__"]
main.same = lambda *_: True
main.call = lambda *_: True
main.grade = lambda *_: None
sys.modules["trial"] = main
def double(x):
    return True
""",
    "patches json": """
import json, sys
json.dumps = lambda row, *_, **__: '["case-00", true, 0]'
def double(x):
    return 0
""",
    "reads frames": """
import sys
def double(x):
    frame = sys._getframe()
    while frame:
        for names in (frame.f_locals, frame.f_globals):
            for name in ("expected", "case", "cases", "tests"):
                if name in names:
                    return names[name]
        frame = frame.f_back
""",
    "reads the heap": """
import gc
def double(x):
    for thing in gc.get_objects():
        if isinstance(thing, dict) and "expected" in thing:
            return thing["expected"]
""",
    "reads the folder": """
import json, os
def double(x):
    for folder, _, names in os.walk("/work"):
        for name in names:
            try:
                task = json.load(open(os.path.join(folder, name)))
                for arguments, expected, *_ in task["cases"]:
                    if arguments == [x]:
                        return expected
            except Exception:
                pass
""",
    "kills its parent": "import os\nos.kill(os.getppid(), 9)\ndef double(x):\n    return 0\n",
    "knows the visible cases": "def double(x):\n    return {0: 0, 2: 4, 5: 10, 13: 26}.get(x)\n",
    "replaces the report": """
import os, sys
def double(x):
    frame = sys._getframe()
    while "out" not in frame.f_locals:
        frame = frame.f_back
    for case in range(8):
        frame.f_locals["out"].write(f'["case-{case:02d}", true, true]\\n')
    frame.f_locals["out"].flush()
    os._exit(0)
""",
    "hides its end": "import atexit\natexit.register(print, 'PASSED')\ndef double(x):\n    return x\n",
    "does not compile": "def double(x:\n",
    "is nothing": "\n",
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_answer_is_graded_unsolved(name, box):
    leaves = f"open({module.WORK + '/answer.py'!r}, 'w').write({FORGED[name]!r})\n"
    result = Repair([TASK]).evaluate(agent(leaves), TASK.task, 1, box)
    assert not result.solved and result.reason and not result.empty
    assert list(result.tests) == list(TASK.cases) and not all(result.tests.values())


def test_a_right_answer_may_print_and_misbehave_and_is_solved(box):
    loud = "import atexit, sys\nprint('x')\natexit.register(print, 'y')\n" + RIGHT
    assert all(grade(box, TASK, loud)[0].values())


def test_hand_made_bugs_are_graded_as_they_are_tested(box):
    bench = benchmark()
    for t in bench.tasks_with_cases():
        if t.task.split == "transfer":
            assert all(grade(box, t, t.fixed)[0].values()), t.task.id
            at_first = bench.at_first(t, box)
            failed = {name for name, ok in at_first.items() if not ok}
            assert failed & t.visible and failed - t.visible, t.task.id
            assert t.fixed == transfer_programs()[t.entry].source


def test_quixbugs_functions_on_nodes_are_repaired_and_graded(box, tmp_path):
    """One program of our own in QuixBugs' layout, with a statement that is there twice."""
    right = (
        "def reverse_linked_list(node):\n    before = None\n    while node:\n"
        "        after = node.successor\n        node.successor = before\n        before = node\n"
        "        node = after\n    return before\n"
    )
    faulty = right.replace(
        "        node = after\n", "        node = after\n        before = None\n"
    )
    for part, text in (("python_programs", faulty), ("correct_python_programs", right)):
        (tmp_path / part).mkdir()
        (tmp_path / part / "reverse_linked_list.py").write_text(text)
    (tmp_path / "json_testcases").mkdir()
    found, _ = quixbugs.read(str(tmp_path))
    assert len(found) == 1 and len(found[0].cases) == len(quixbugs_adapter.CASES[found[0].entry])
    bench = Repair(found, budget=40)
    result = bench.evaluate(first_agent(), found[0].task, 1, box)
    assert result.solved and result.answer == right


def parent(maker=None, tree=None):
    return Parent(0, tree or first_agent(), {**first_agent(), **(maker or {})}, [])


def test_evolve_makes_valid_children_and_the_same_seed_the_same(box):
    made = {}
    for seed in range(8):
        proposal = Genetic().propose(parent(), seed, box)
        made[seed] = proposal
        files, said = evolve.child(
            {name: data.decode() for name, data in first_agent().items()},
            {name: data.decode() for name, data in donor_library().items()},
            json.loads(first_agent()["policy.json"])["mutation"],
            seed,
        )
        assert files is not None and proposal.diagnosis == said
        if proposal.tree is not None:
            assert {name: data.decode() for name, data in proposal.tree.items()} == files
    assert sum(p.tree is not None for p in made.values()) >= 5
    assert Genetic().propose(parent(), 3, box) == made[3]
    child = next(p.tree for p in made.values() if p.tree and "transplanted" in p.diagnosis)
    result = Repair([TASK], budget=30).evaluate(child, TASK.task, 1, box)
    assert "candidates" in result.log


def test_the_makers_code_makes_the_child_from_the_parents_files(box):
    maker = {
        "evolve.py": first_agent()["evolve.py"].replace(b"    print(said)", b"    print('mine')")
    }
    proposal = Genetic().propose(parent(maker), 1, box)
    assert proposal.diagnosis == "mine" and proposal.tree is not None
    assert b"print('mine')" not in proposal.tree["evolve.py"]


def removing(tree):
    """The agent with a policy that makes children by removal alone."""
    policy = json.loads(tree["policy.json"])
    policy["mutation"] = dict.fromkeys(policy["mutation"], 0.0) | {"remove": 1.0}
    return {**tree, "policy.json": json.dumps(policy).encode()}


def test_the_kind_of_change_is_drawn_by_the_makers_weights_and_not_the_parents(box):
    """Else the ablation without self-improvement, whose maker is the first agent, would ablate
    nothing: it once made the same archive."""
    shifted = removing(first_agent())
    said = [Genetic().propose(parent(shifted), seed, box).diagnosis for seed in range(4)]
    assert all(s.startswith("removed") for s in said)
    said = [Genetic().propose(parent(tree=shifted), seed, box).diagnosis for seed in range(4)]
    assert not all(s.startswith("removed") for s in said)


def test_a_maker_sees_donors_only_where_it_may(box):
    look = {"evolve.py": b"import os\nprint(sorted(os.listdir('/work')))\n"}
    with_donors = Genetic().propose(parent(look), 1, box)
    without = Genetic(donors=False).propose(parent(look), 1, box)
    assert with_donors.diagnosis == "['donors', 'maker', 'parent']"
    assert without.diagnosis == "['maker', 'parent']"
    assert with_donors.tree is None and with_donors.reason.startswith("evolve.py made no child")


HEAD = "import os, sys\nto = sys.argv[2]\nos.makedirs(to)\n"
COPY = HEAD + (
    "for n in os.listdir(sys.argv[1]):\n"
    "    open(os.path.join(to, n), 'w').write(open(os.path.join(sys.argv[1], n)).read())\n"
)
BROKEN = {
    "raise ValueError('no\\x1b[31mluck')": "evolve.py failed: exit code 1: ValueError: no�[31mluck",
    "while True: pass": "evolve.py failed: ended by its limit of CPU time",
    HEAD + "os.symlink('/etc/passwd', to + '/repair.py')": "a file of the child's is refused",
    HEAD
    + "open(to + '/a.py', 'w').write('#' * 200000)": "more than 32 files or 128 KiB|is refused",
    HEAD
    + "[open(f'{to}/{i}', 'w').write('x') for i in range(40)]": "more than 32 files|is refused",
    HEAD + "open(to + '/repair.py', 'wb').write(b'\\xff')": "is no text",
    COPY + "os.makedirs(to + '/.git'); open(to + '/.git/config', 'w')": "an odd name: .git/config",
    COPY: "the child is its parent",
    COPY + "open(to + '/evolve.py', 'w').write('def')": "fails its self-test: exit code 1: Syntax",
    COPY + "os.remove(to + '/policy.json')": "fails its self-test: exit code 1: FileNotFound",
    COPY
    + "open(to + '/repair.py', 'w').write('while True: pass')": "self-test: ended by its limit of CPU",
}


@pytest.mark.parametrize("code", BROKEN)
def test_a_child_that_is_none_has_a_reason(code, box):
    proposal = Genetic().propose(parent({"evolve.py": code.encode()}), 1, box)
    assert proposal.tree is None
    assert any(part in proposal.reason for part in BROKEN[code].split("|")), proposal.reason
    assert json.loads(json.dumps(proposal.reason)).isprintable()
