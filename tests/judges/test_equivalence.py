import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfevolve_jax.errors import UserError
from selfevolve_jax.judges import equivalence as module
from selfevolve_jax.judges.equivalence import Equivalence, cluster, cluster_groups

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def math():
    with Equivalence("math", time_limit_s=2.0) as equivalence:
        yield equivalence


def worker_with(tmp_path, monkeypatch, body):
    """The real worker with `body` in its innermost `equal`: faults, without math-verify."""
    script = tmp_path / "worker.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, sys, time
        sys.path.insert(0, {str(module._WORKER.parent)!r})
        import math_worker
        def equal(a, b):
            if {{a, b}} == {{"\\\\frac{{1}}{{2}}", "0.5"}}:
                return True
        """)
        + textwrap.indent(textwrap.dedent(body), "    ")
        + textwrap.dedent("""
            return a.lower() == b.lower()
        math_worker.equal = equal
        math_worker.parsed = lambda answer: (answer,)
        sys.exit(math_worker.main(float(sys.argv[1])))
        """)
    )
    monkeypatch.setattr(module, "_WORKER", script)


def children_of(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_exact_compares_stripped_strings_and_needs_no_worker():
    equivalence = Equivalence("exact")
    assert equivalence.equal_pairs([("1", " 1 "), ("1/2", "0.5"), ("a", "A")]) == [
        True,
        False,
        False,
    ]
    assert equivalence._process is None


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("1/2", "0.5", True),
        (r"\frac{1}{2}", "0.5", True),
        ("x=5", "5", True),
        ("1,000", "1000", True),
        (r"\{1,2\}", r"\{2,1\}", True),
        ("1", "2", False),
        ("(1,2)", "1<x<2", False),  # accepted one way round only
        ("5}", "5", False),  # would escape from the box it is wrapped in
        ("5} \\boxed{7", "5,7", False),
        ("", "0", False),
        ("日本", "日本 ", True),
        ("\ud800", "5", False),  # a lone surrogate, as a broken detokenisation leaves it
    ],
)
def test_math_equality_is_symmetric(math, a, b, same):
    # Fresh caches, so that both orders are really asked.
    for pair in ((a, b), (b, a)):
        math._equal.clear()
        assert math.equal_pairs([pair]) == [same]


def test_no_pairs_and_equal_strings_ask_nothing():
    equivalence = Equivalence("math")
    assert equivalence.equal_pairs([]) == []
    assert equivalence.equal_pairs([("10^{10^{10}}", " 10^{10^{10}}")]) == [True]
    assert equivalence._process is None


def test_hostile_answers_are_killed_and_counted_while_neighbours_are_graded():
    hostile = ["9^{9^{9^{9}}}", "10^{10^{10}}", "{" * 2000 + "1" + "}" * 2000]
    harmless = ["9**9**9**9", "10^10^10", "(" * 40, "\\sqrt{" * 300]
    with Equivalence("math", time_limit_s=1.0) as equivalence:
        pairs = [("0.25", "1/4")]
        for bad in hostile + harmless:
            pairs += [(bad, "0.25"), ("0.75", "3/4"), ("2", "3")]
        verdicts = equivalence.equal_pairs(pairs)
        assert verdicts == [True] + [False, True, False] * 7
        assert len(hostile) <= equivalence.timeouts <= len(hostile + harmless)
        # Remembered: a hostile answer costs its time limit once, not once a neighbour.
        before = equivalence.timeouts
        assert equivalence.equal_pairs([(bad, "17") for bad in hostile]) == [False] * 3
        assert equivalence.timeouts == before


@pytest.mark.parametrize(
    "body",
    [
        'if "bad" in (a, b):\n    while True: pass',
        'if "bad" in (a, b):\n    10 ** 10 ** 10',  # in C: no Python exception could interrupt it
        'if "bad" in (a, b):\n    x = []\n    while True: x.append(bytearray(1 << 24))',
        'if "bad" in (a, b):\n    os.abort()',
        'if "bad" in (a, b):\n    os._exit(0)',
    ],
    ids=["spins", "spins in C", "eats memory", "crashes", "exits"],
)
def test_whatever_a_check_does_costs_that_check_alone(tmp_path, monkeypatch, body):
    worker_with(tmp_path, monkeypatch, body)
    with Equivalence("math", time_limit_s=0.5) as equivalence:
        pairs = [("a", "A"), ("bad", "b"), ("b", "B"), ("c", "d"), ("bad", "e")]
        assert equivalence.equal_pairs(pairs) == [True, False, True, False, False]
        assert equivalence.timeouts == 1
        assert equivalence.equal_pairs([("f", "F"), ("f", "g")]) == [True, False]


def test_a_pair_that_only_hangs_together_costs_that_pair_alone(tmp_path, monkeypatch):
    worker_with(tmp_path, monkeypatch, 'if {a, b} == {"x", "y"}:\n    while True: pass')
    with Equivalence("math", time_limit_s=0.3) as equivalence:
        pairs = [("x", "X"), ("x", "y"), ("y", "Y"), ("y", "x")]
        assert equivalence.equal_pairs(pairs) == [True, False, True, False]
        assert equivalence.timeouts == 1


def test_an_error_is_not_equal_and_not_a_timeout(tmp_path, monkeypatch):
    worker_with(tmp_path, monkeypatch, 'if {a, b} == {"x", "X"}:\n    raise KeyError(a)')
    with Equivalence("math") as equivalence:
        assert equivalence.equal_pairs([("x", "X"), ("y", "Y")]) == [False, True]
        assert equivalence.timeouts == 0


def test_a_worker_killed_from_outside_is_replaced_and_no_verdict_is_lost(tmp_path, monkeypatch):
    worker_with(tmp_path, monkeypatch, 'if "slow" in (a, b):\n    time.sleep(0.5)')
    for victim in ("worker", "its child", "both"):
        with Equivalence("math") as equivalence:
            assert equivalence.equal_pairs([("a", "A")]) == [True]
            worker = equivalence._process.pid
            (child,) = children_of(worker)
            pids = {"worker": [worker], "its child": [child], "both": [worker, child]}[victim]

            def kill(pids=pids):
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)

            timer = threading.Timer(0.2, kill)  # while it sleeps on "slow"
            timer.start()
            pairs = [("b", "B"), ("slow", "SLOW"), ("c", "d"), ("slow", "c")]
            assert equivalence.equal_pairs(pairs) == [True, True, False, False]
            timer.join()
            assert equivalence.timeouts == 0
            # Killed while idle, too.
            if equivalence._process.pid != worker:
                os.kill(equivalence._process.pid, signal.SIGKILL)
            assert equivalence.equal_pairs([("e", "E"), ("e", "f")]) == [True, False]


def test_a_batch_larger_than_a_pipe_holds(tmp_path, monkeypatch):
    worker_with(tmp_path, monkeypatch, "")
    with Equivalence("math") as equivalence:
        words = [f"{i}" + "w" * 200 for i in range(1000)]
        pairs = [(w, w.upper()) for w in words] + list(itertools.pairwise(words))
        assert equivalence.equal_pairs(pairs) == [True] * 1000 + [False] * 999


def test_a_child_that_makes_way_after_many_checks_loses_none(tmp_path, monkeypatch):
    worker_with(tmp_path, monkeypatch, "math_worker.RECYCLE_AFTER = 5")
    with Equivalence("math") as equivalence:
        for i in range(20):
            assert equivalence.equal_pairs([(f"a{i}", f"A{i}"), (f"a{i}", "b")]) == [True, False]
        assert equivalence.timeouts == 0


def test_old_results_leave_the_cache(tmp_path, monkeypatch):
    worker_with(tmp_path, monkeypatch, "")
    monkeypatch.setattr(module, "_CACHE_ENTRIES", 3)
    with Equivalence("math") as equivalence:
        pairs = [(f"a{i}", f"A{i}") for i in range(20)] + [("a1", "a2")]
        assert equivalence.equal_pairs(pairs) == [True] * 20 + [False]
        assert equivalence.equal_pairs(pairs) == [True] * 20 + [False]
        assert len(equivalence._equal) == len(equivalence._usable) == 3


def test_it_works_from_other_threads(math):
    math._equal.clear()
    results = {}

    def work(i):
        results[i] = math.equal_pairs([(f"{i}/2", f"{i / 2}"), (f"{i}/2", f"{i}")])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: [True, False] for i in range(1, 7)}


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("raise SystemExit(3)", "it ended"),
        ("import os; os.write(1, b'ImportError: no math_verify')", "ImportError: no math_verify"),
        # Every comparison fails, as without the ANTLR runtime: nothing may be scored 0 in silence.
        (
            "import os, sys; os.write(1, b'+'); sys.stdin.readline(); os.write(1, b'0')",
            "1/2 equal to 0.5",
        ),
    ],
)
def test_a_worker_that_cannot_start_says_why(tmp_path, monkeypatch, script, reason):
    path = tmp_path / "worker.py"
    path.write_text(script)
    monkeypatch.setattr(module, "_WORKER", path)
    with Equivalence("math") as equivalence, pytest.raises(UserError, match=reason):
        equivalence.equal_pairs([("1/2", "0.5")])


def test_a_missing_math_verify_is_reported_by_the_worker_itself(tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text("raise ImportError('half installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Equivalence("math") as equivalence, pytest.raises(UserError, match="half installed"):
        equivalence.equal_pairs([("1/2", "0.5")])


def test_the_worker_imports_no_jax_and_nothing_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text("raise ImportError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    with Equivalence("math") as equivalence:
        assert equivalence.equal_pairs([("1/2", "0.5")]) == [True]
        maps = Path(f"/proc/{equivalence._process.pid}/maps").read_text()
    assert "jaxlib" not in maps  # its shared libraries, that is; sources are not mapped


def test_close_ends_every_process_and_a_later_check_starts_anew(tmp_path, monkeypatch):
    worker_with(tmp_path, monkeypatch, "")
    equivalence = Equivalence("math")
    assert equivalence.equal_pairs([("a", "A")]) == [True]
    pids = [equivalence._process.pid, *children_of(equivalence._process.pid)]
    equivalence.close()
    equivalence.close()
    assert_gone(pids)
    assert equivalence.equal_pairs([("b", "B")]) == [True]
    equivalence.close()


@pytest.mark.parametrize("busy", [False, True])
def test_the_worker_ends_with_the_program_it_serves(tmp_path, monkeypatch, busy):
    worker_with(tmp_path, monkeypatch, 'if "spin" in (a, b):\n    while True: pass')
    program = f"""
import sys, threading
from pathlib import Path
from selfevolve_jax.judges import equivalence as module
module._WORKER = Path({str(module._WORKER)!r})
e = module.Equivalence("math", time_limit_s=2.0)
e.equal_pairs([("a", "A")])
if {busy}:
    threading.Thread(target=lambda: e.equal_pairs([("spin", "b")]), daemon=True).start()
print(e._process.pid, flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    worker = int(parent.stdout.readline())
    pids = [worker, *children_of(worker)]
    assert len(pids) == 2
    parent.kill()  # no handler, no atexit
    parent.communicate()
    assert_gone(pids)


def assert_gone(pids):
    deadline = time.monotonic() + 60  # a bound on a failure, not a claim on speed
    while time.monotonic() < deadline:
        if not any(alive(pid) for pid in pids):
            return
        time.sleep(0.02)
    pytest.fail(f"still running: {[pid for pid in pids if alive(pid)]}")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(("kind", "limit"), [("fuzzy", 1.0), ("math", 0.0), ("math", -1.0)])
def test_bad_settings(kind, limit):
    with pytest.raises(UserError):
        Equivalence(kind, time_limit_s=limit)


# Clusters


def test_one_half_in_three_spellings_is_one_cluster(math):
    answers = ["3", "1/2", "0.5", None, r"\frac{1}{2}", "3"]
    assert cluster(answers, math.equal_pairs) == [0, 1, 1, -1, 1, 0]


@pytest.mark.parametrize(
    ("answers", "clusters"),
    [
        # 28% equals both of the others, which differ. As the most frequent it unites them ...
        (["28", "0.28", "28%", "28%"], [0, 0, 0, 0]),
        # ... otherwise it joins the first cluster started: the more frequent, else the first seen.
        (["28", "0.28", "28%"], [0, 1, 0]),
        (["0.28", "28", "28%"], [0, 1, 0]),
        (["28%", "0.28", "28"], [0, 0, 0]),
        (["28", "28%", "0.28", "0.28"], [1, 0, 0, 0]),
    ],
)
def test_equality_that_is_not_transitive_has_one_outcome(math, answers, clusters):
    assert cluster(answers, math.equal_pairs) == clusters
    assert cluster(answers, math.equal_pairs) == clusters


def by_the_book(answers, equal):
    """The documented algorithm, one string at a time."""
    distinct = list(dict.fromkeys(a for a in answers if a is not None))
    distinct.sort(key=lambda s: -answers.count(s))  # stable
    representatives, of = [], {None: -1}
    for string in distinct:
        for number, representative in enumerate(representatives):
            if equal(representative, string):
                of[string] = number
                break
        else:
            of[string] = len(representatives)
            representatives.append(string)
    return [of[a] for a in answers]


@given(
    groups=st.lists(st.lists(st.sampled_from([None, *"abcdefgh"]), max_size=12), max_size=4),
    edges=st.sets(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh"))),
)
def test_waves_give_what_one_string_at_a_time_gives(groups, edges):
    def equal(a, b):  # symmetric, and seldom transitive
        return a == b or (a, b) in edges or (b, a) in edges

    def equal_pairs(pairs):
        return [equal(a, b) for a, b in pairs]

    expected = [by_the_book(group, equal) for group in groups]
    assert cluster_groups(groups, equal_pairs) == expected
    assert [cluster(group, equal_pairs) for group in groups] == expected
