"""Runs of DGM written by hand: what the page says is worked out beside it."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launch import cli
from selfevolve_jax import run_dir
from selfevolve_jax.dgm import events
from selfevolve_jax.errors import UserError
from selfevolve_jax.report import dgm_run, tree_diff, untrusted
from selfevolve_jax.report.dgm_load import best_of, load
from selfevolve_jax.report.dgm_run import watch, write_page
from selfevolve_jax.report.lineage_figure import Drawn, colour, lineage

ROOT = Path(run_dir.__file__).parents[1]
VOID = {"meta", "br"}
NOTHING = {"calls": 0, "tokens_in": 0, "tokens_out": 0, "dollars": 0.0}
CONFIG = {"benchmark": "toy", "selection": {"way": "dgm", "sharpness": 10.0}, "seed": 0}
EVIL = "<script>alert(1)</script>\x1b[31m\x07\u202e{{ 7*7 }}</pre></details>"


class Page(HTMLParser):
    """Tags that pair, their attributes, ids, rows of tables, text, and the text of each agent."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.attributes, self.rows = [], [], [], [], []
        self.pieces, self.agents, self.agent = [], {}, None
        self.feed(text)
        self.close()
        self.text = "".join(self.pieces)
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.attributes.append((tag, attributes))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "article":
            self.agent = self.agents.setdefault(
                attributes["id"], {"text": [], "squares": [], "class": attributes["class"]}
            )
        kind = attributes.get("class") or ""
        if self.agent is not None and kind.startswith("s "):
            self.agent["squares"].append((kind[2:], attributes.get("title")))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("small", "br", "span"):
            self.handle_data(" ")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open}"
        self.open.pop()
        if tag == "article":
            self.agent = None
        if tag in ("p", "summary", "pre", "h4"):
            self.handle_data(" ")

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.pieces.append(data)
        if self.agent is not None:
            self.agent["text"].append(data)
        if self.rows and set(self.open) & {"td", "th"}:
            self.rows[-1][-1] += data

    def row(self, first):
        (found,) = [row for row in self.rows if row[0] == first]
        return [" ".join(cell.split()) for cell in found]

    def said(self, agent=None):
        said = self.pieces if agent is None else self.agents[agent]["text"]
        return " ".join("".join(said).split())

    def squares(self, agent):
        """(kind, title) of the grid; those without a title are of the list of attempts."""
        return [square for square in self.agents[agent]["squares"] if square[1] is not None]


def git(repository, *arguments, data=None):
    made = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a", "GIT_COMMITTER_NAME": "a"}
    command = ["git", "--git-dir", str(repository), *arguments]
    done = subprocess.run(
        command,
        input=data,
        capture_output=True,
        check=True,
        env={**os.environ, **made, "GIT_COMMITTER_EMAIL": "a"},
    )
    return done.stdout


class Maker:
    """Writes one arm of a run by events.Log and git's plumbing."""

    def __init__(self, run, arm="dgm"):
        self.run, self.folder = run, run / "arms" / arm
        self.folder.mkdir(parents=True)
        run_dir.write_json_atomic(run / "config.json", {"config": CONFIG})
        self.repository = self.folder / "agents.git"
        subprocess.run(["git", "init", "-q", "--bare", str(self.repository)], check=True)
        self.log = events.Log(self.folder / "events.jsonl")
        self.log.append("run", seed=0)

    def commit(self, files):
        lines = b""
        for name, content in files.items():
            blob = git(self.repository, "hash-object", "-w", "--stdin", data=content).strip()
            lines += b"100644 blob " + blob + b"\t" + name.encode() + b"\0"
        tree = git(self.repository, "mktree", "-z", data=lines).decode().strip()
        return git(self.repository, "commit-tree", tree, "-m", "agent").decode().strip()

    def child(self, agent, parent, tree_files, **fields):
        """tree_files: None where no child came of it."""
        plain = {
            **{"generation": agent, "slot": 0, "reason": "", "entry": "", "diagnosis": ""},
            **{"flags": [], "usage": NOTHING, "seconds": 1.0, "files": f"children/{agent}"},
        }
        tree = None if tree_files is None else self.commit(tree_files)
        self.log.append("child", agent=agent, parent=parent, tree=tree, **{**plain, **fields})

    def tried(self, agent, task, solved, split="train", **fields):
        plain = {
            **{"seed": 1, "group": task, "partial": float(solved), "empty": False, "reason": ""},
            **{"tests": {}, "usage": NOTHING, "cpu_s": 2.0, "wall_s": 3.0, "files": ""},
        }
        self.log.append(
            "evaluated", agent=agent, task=task, solved=solved, split=split, **{**plain, **fields}
        )

    def text(self, folder, name, content):
        path = self.folder / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def end(self, best=None, arm="dgm"):
        self.log.append("stopped", reason="the end")
        if best is not None:
            summary = {"arms": {arm: {"before": {}, "after": {}, "best": best}}, "seconds": 9}
            run_dir.write_json_atomic(self.run / "summary.json", summary)


def small(run):
    """0 solves 1 of 4 tasks; 1, its child, failed; 2, its child, solves 3; 3, a child of 2, none."""
    made = Maker(run)
    made.child(0, None, {"agent.py": b"a = 1\nb = 2\n"}, files="")
    for number in range(4):
        made.tried(0, f"p{number}", number == 0)
    made.child(1, 0, None, reason="the answer is no JSON", files="children/1")
    made.text("children/1", "raw.txt", "I would rather not.")
    usage = {"calls": 3, "tokens_in": 1200, "tokens_out": 34, "dollars": 0.5}
    made.child(
        *(2, 0, {"agent.py": b"a = 1\nb = 3\n"}),
        **{"entry": "p3", "diagnosis": "b is too small", "flags": ["touches limits"]},
        **{"usage": usage, "seconds": 12.0},
    )
    made.text("children/2", "raw.txt", '{"improvement_proposal": "b = 3"}')
    made.text("children/2", "log.txt", "edited agent.py")
    made.tried(2, "p0", True)
    made.tried(2, "p1", True)
    made.tried(2, "p2", True)
    usage = {"calls": 1, "tokens_in": 100, "tokens_out": 10, "dollars": 0.25}
    made.tried(
        *(2, "p3", False, "train"),
        **{"partial": 0.25, "reason": "one test failed", "files": "evaluations/x"},
        **{"tests": {"easy": True, "hard": False}, "usage": usage},
    )
    made.text("evaluations/x", "answer.txt", "my patch")
    made.text("evaluations/x", "log.txt", "I tried")
    made.child(3, 2, {"agent.py": b""})
    made.tried(3, "p0", False, empty=True)
    made.tried(3, "p1", False)
    made.tried(3, "p2", False)
    made.tried(3, "p3", False)
    return made


def page(run, **options):
    return Page(write_page(run, **options).read_text())


# -- what it says


def test_the_table_has_the_figures_of_the_first_and_the_best(tmp_path):
    made = small(tmp_path)
    for task in ("h0", "h1"):
        made.tried(0, task, False, "held_out")
        made.tried(2, task, True, "held_out")
    made.end(best=2)
    found = page(tmp_path).row("dgm")
    # Wilson: 1 of 4 is 0.046 to 0.699, 3 of 4 is 0.301 to 0.954; 0 of 2 is 0 to 3.84 / 5.84 = 0.658
    assert found[1:3] == ["0.250 0.05 to 0.70", "0.750 0.30 to 0.95"]
    # two of two gained: 0.342 to 1; none lost: 0 to 0.658; so 1 - sqrt(0.658² + 0.658²) = 0.07
    assert found[3:6] == ["0.000 0.00 to 0.66", "1.000 0.34 to 1.00", "+1.000 +0.07 to +1.00"]
    assert found[6:9] == ["–", "–", "–"]  # nothing of transfer
    assert found[9] == "4 3 made 3 valid"
    assert found[10] == "$0.75 1,344 tokens"  # 0.5 + 0.25; 1200 + 34 + 100 + 10
    assert found[11].endswith("32 s CPU")  # 16 evaluations of 2 s


def test_each_agent_tells_its_story(tmp_path):
    made = small(tmp_path)
    made.end(best=2)
    shown = page(tmp_path)
    told = shown.said("a0-2")
    assert "child of 0 parent of 3 train 0.750 (0.30 to 0.95), partial 0.812, 4 tasks" in told
    assert "entry p3 generation 2 made in 12 s: $0.50, 3 calls, 1,200 + 34 tokens" in told
    assert "evaluated in 8.0 s CPU: $0.25, 1 calls, 100 + 10 tokens" in told
    assert "Flagged by the hacking check: touches limits" in told
    assert "Diagnosis 14 B b is too small" in told
    diff = told[told.index("Diff") : told.index("Raw")]
    assert re.match(r"Diff against 0 \d+ B diff --git a/agent.py", diff), diff
    assert "a = 1 -b = 2 +b = 3" in diff
    assert "Raw answer 33 B · arms/dgm/children/2/raw.txt" in told
    assert "edited agent.py" in told and "my patch" in told and "I tried" in told
    assert "Tests that failed: hard" in told
    assert shown.squares("a0-2") == [
        *(("solved", f"p{n}, solved, 2.0 s CPU") for n in range(3)),
        ("partial", "p3, partial 0.25, 1 of 2 tests, 2.0 s CPU: one test failed"),
    ]
    assert ("a", "s partial", "--p:25%") in [
        (tag, a.get("class"), a.get("style")) for tag, a in shown.attributes
    ]
    assert [kind for kind, _ in shown.squares("a0-3")] == ["empty", "wrong", "wrong", "wrong"]
    failed = shown.said("a0-1")
    assert "Failed: the answer is no JSON" in failed and "I would rather not." in failed
    assert "none at arms/dgm/children/1/log.txt" in failed
    assert shown.agents["a0-1"]["class"] == "agent failed"
    assert "Agent 2 best" in shown.said("a0-2") and "best" not in shown.said("a0-3")
    assert "Best lineage: 0 → 2 " in shown.said()


def test_the_lineage_links_to_every_agent(tmp_path):
    small(tmp_path).end(best=2)
    shown = page(tmp_path)
    links = [a for tag, a in shown.attributes if tag == "a" and "class" in a]
    pills = {a["href"]: a["class"] for a in links if not a["class"].startswith("s ")}
    assert pills == {"#a0-0": "best", "#a0-1": "failed", "#a0-2": "best top", "#a0-3": ""}
    hrefs = {a["href"] for tag, a in shown.attributes if "href" in a}
    assert all(href[0] == "#" and href[1:] in shown.ids for href in hrefs)
    assert len(shown.ids) == len(set(shown.ids))


def test_without_a_summary_the_best_is_of_those_that_were_tried_most(tmp_path):
    made = small(tmp_path)
    made.child(4, 0, {"agent.py": b"c"})
    made.tried(4, "p0", True)  # all of one task
    (arm,) = load(tmp_path)
    assert arm.best == best_of(arm.nodes.values()) == 2
    made.end(best=0)
    assert load(tmp_path)[0].best == 0


def test_repeats_are_averaged_within_their_task(tmp_path):
    made = Maker(tmp_path)
    made.child(0, None, {})
    made.tried(0, "p0", True, seed=1)
    made.tried(0, "p0", False, seed=2)
    made.tried(0, "p0", False, seed=3)
    made.tried(0, "p0", False, seed=4)
    made.tried(0, "p1", True)
    told = page(tmp_path).said("a0-0")
    assert "train 0.625 (" in told and "2 tasks, 5 attempts" in told  # (1/4 + 1) / 2


def test_the_time_of_an_arm_is_without_the_pause_before_a_resume(tmp_path):
    (tmp_path / "arms" / "a").mkdir(parents=True)
    lines = [("run", 100), ("stopped", 130), ("run", 5000), ("stopped", 5012.5)]
    text = "".join(json.dumps({"event": e, "time": t, "reason": "x"}) + "\n" for e, t in lines)
    (tmp_path / "arms" / "a" / "events.jsonl").write_text(text)
    assert page(tmp_path).row("a")[11] == "42 s 0.0 s CPU"


def test_the_curve_rises_with_the_best_so_far(tmp_path):
    made = small(tmp_path)
    (arm,) = load(tmp_path)
    curve = dgm_run._best_so_far(0, arm)
    assert curve is not None
    assert curve.steps.tolist() == [0, 1, 2, 3]
    assert curve.mean.tolist() == [0.25, 0.25, 0.75, 0.75]
    assert curve.low.round(3).tolist() == [0.046, 0.046, 0.301, 0.301]
    made.end()
    assert "dgm 0.75" in page(tmp_path).text


def test_what_counts_for_nothing_is_told(tmp_path):
    made = small(tmp_path)
    for _ in range(2):
        made.log.append("unavailable", what="evaluation", agent=2, task="p0", reason="429")
    made.log.append("run", seed=0, excluded={"rust": "no cargo"})
    made.end()
    told = page(tmp_path).said()
    assert "1 tasks or groups of tasks are left out, and in no score rust: no cargo" in told
    assert "2 attempts count for nothing" in told and "2 × 429" in told
    assert "stopped: the end" in told


# -- a run that is not yet what it will be


def test_a_run_without_any_event_has_a_page(tmp_path):
    run_dir.write_json_atomic(tmp_path / "config.json", {"config": CONFIG})
    assert dgm_run.is_dgm(tmp_path, CONFIG)
    assert "No agent yet" in page(tmp_path).said()


def test_a_run_with_one_agent_that_was_not_evaluated_has_a_page(tmp_path):
    made = Maker(tmp_path)
    assert "No agent yet." in page(tmp_path).said()
    made.child(0, None, {"agent.py": b"a"})
    shown = page(tmp_path)
    assert "failed" not in shown.agents["a0-0"]["class"]
    assert shown.row("dgm")[1:3] == ["–", "–"] and "the run goes on" in shown.said()
    assert any(a.get("class") == "unknown" for tag, a in shown.attributes if tag == "a")


def test_a_torn_tail_is_told_and_left_alone(tmp_path):
    made = small(tmp_path)
    log = made.folder / "events.jsonl"
    with open(log, "ab") as file:
        file.write(b'{"event": "chi')
    before = log.read_bytes()
    assert "The last 14 B of its log are half an event" in page(tmp_path).said()
    assert log.read_bytes() == before


def test_a_log_beside_the_config_is_an_arm(tmp_path):
    made = small(tmp_path / "made")
    for name in ("events.jsonl", "agents.git"):
        (made.folder / name).rename(tmp_path / name)
    assert "-b = 2" in page(tmp_path).said("a0-2")


def test_a_parent_that_no_event_has_made_is_named(tmp_path):
    small(tmp_path).child(4, 5, None)
    with pytest.raises(UserError, match=r"agent 4 has parent 5, which is none before it"):
        write_page(tmp_path)


def test_a_damaged_log_is_named(tmp_path):
    made = small(tmp_path)
    made.tried(77, "p0", True)
    with pytest.raises(UserError, match=r"agent 77 before it was made"):
        write_page(tmp_path)
    log = made.folder / "events.jsonl"
    log.write_bytes(b"{\n" + log.read_bytes())
    with pytest.raises(UserError, match="line 1 is damaged"):
        write_page(tmp_path)


# -- what agents and models wrote


def hostile(run):
    made = Maker(run)
    made.child(0, None, {"agent.py": b"a = 1\n"}, files="")
    made.child(
        *(1, 0, {"agent.py": EVIL.encode() + b"\n", "<img src=x>.py": b"\xff\xfe\n"}),
        **{"entry": EVIL, "diagnosis": EVIL * 5000, "flags": [EVIL], "reason": EVIL},
    )
    made.text("children/1", "raw.txt", EVIL * 10)
    made.text("children/1", "log.txt", b"\x1b\xff\x00" * 3_500_000)
    made.tried(
        *(1, EVIL, False, "train"),
        **{"group": EVIL, "reason": EVIL, "tests": {EVIL: False}, "files": "evaluations/x"},
    )
    made.text("evaluations/x", "answer.txt", '"' * 5_000)
    made.text("evaluations/x", "log.txt", b"first\n" + EVIL.encode() * 200_000 + b"\nlast")
    made.child(2, 1, None, reason="\ud800 half", entry="x" * 100_000, flags=["f" * 9999] * 500)
    made.log.append("unavailable", what="child", agent=3, task="", reason=EVIL)
    return made


def test_nothing_that_an_agent_wrote_is_obeyed(tmp_path):
    hostile(tmp_path).end(best=1)
    text = write_page(tmp_path).read_text()
    shown = Page(text)  # tags pair, so no text closed one
    assert not {"script", "img", "link", "iframe", "object", "form", "base"} & set(shown.tags)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    for tag, attributes in shown.attributes:
        assert not any(name.startswith("on") or name in ("src", "srcset") for name in attributes)
        assert attributes.get("href", "#")[0] == "#", (tag, attributes)
    assert not re.findall(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", text)
    assert "{{ 7*7 }}" in shown.text and "<script>alert(1)</script>�[31m��" in shown.text
    assert "default-src 'none'" in text
    assert len(text) < 150_000


def test_what_is_cut_is_counted_and_its_file_named(tmp_path):
    hostile(tmp_path).end(best=1)
    told = page(tmp_path).said("a0-1")
    size = 6 + 200_000 * len(EVIL.encode()) + 5
    named = re.search(
        r"Log ([\d.]+ MB), of which ([\d.]+ MB) are left out here · (\S+) first", told
    )
    assert named is not None and named[3] == "arms/dgm/evaluations/x/log.txt"
    assert float(named[1].split()[0]) == round(size / 1e6, 1)
    gap = re.search(r"… ([\d,]+) bytes left out … [^…]*last", told)
    assert gap is not None and size - dgm_run.ATTEMPT <= int(gap[1].replace(",", "")) < size
    assert "Log of the self-modification 10.5 MB, of which 10.5 MB are left out" in told


def test_where_not_all_attempts_have_room_the_unsolved_are_shown(tmp_path, monkeypatch):
    small(tmp_path).end(best=2)
    monkeypatch.setattr(dgm_run, "ATTEMPTS", 1)
    told = page(tmp_path).said("a0-2")
    assert "Attempts 1 of 4, those unsolved first" in told and "my patch" in told


@settings(max_examples=60)
@given(st.binary(max_size=3000), st.integers(20, 400))
@example(b'"' * 3000, 400)  # five bytes each, once escaped
@example(b'"' * 300, 400)
def test_an_excerpt_is_no_longer_than_it_may_be(tmp_path_factory, data, most):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "x").mkdir()
    (folder / "x" / "log.txt").write_bytes(data)
    found = untrusted.read(folder, "x", "log.txt", most, "arms/a")
    assert len(untrusted.escape(found.text).encode()) <= 1.5 * most + 60
    assert found.size == len(data) and found.where == "arms/a/x/log.txt"
    if found.left_out:
        assert f"{found.left_out:,} bytes left out" in found.text
    else:
        assert found.text == untrusted.shown(data.decode("utf-8", "replace"))


def test_no_file_outside_of_the_run_is_read(tmp_path):
    run = tmp_path / "run"
    made = small(run)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "raw.txt").write_text("the key")
    (made.folder / "way").symlink_to(tmp_path / "secret")
    for agent, files in enumerate(("../../../secret", str(tmp_path / "secret"), "way"), 4):
        made.child(agent, 0, None, files=files)
    shown = page(run)
    assert "the key" not in shown.text
    for agent in (4, 5, 6):
        assert "Raw answer: its path leads out of the run" in shown.said(f"a0-{agent}")


def test_a_run_without_its_repository_says_so(tmp_path):
    made = small(tmp_path)
    made.repository.rename(tmp_path / "elsewhere")
    assert "Diff against 0: agents.git is missing" in page(tmp_path).said("a0-2")


def test_an_unknown_commit_is_said_to_be_one(tmp_path):
    made = Maker(tmp_path)
    first = made.commit({"a": b"1"})
    assert "git could not compare" in tree_diff.diff(made.repository, first, "0" * 40, 99).why
    assert "no commit" in tree_diff.diff(made.repository, first, "--output=/tmp/x", 99).why
    # a failure is not kept in mind: the commit may come
    second = made.commit({"a": b"2"})
    assert "+2" in tree_diff.diff(made.repository, first, second, 9999).text


def test_a_long_diff_is_cut_at_a_line_and_its_bytes_are_counted(tmp_path):
    made = Maker(tmp_path)
    old, new = made.commit({"a": b""}), made.commit({"a": b"line of text\n" * 50_000})
    whole = git(made.repository, "diff-tree", "-r", "-p", old, new)
    found = tree_diff.diff(made.repository, old, new, 2000)
    assert found.size == len(whole) and 1986 < found.kept <= 2000
    assert found.text.encode() == whole[: found.kept] and found.text.endswith("text\n")


def test_an_agents_attributes_and_a_repositorys_commands_hide_nothing(tmp_path):
    made = Maker(tmp_path / "run")
    attributes = {".gitattributes": b"* -diff\n*.py diff=evil\n"}
    old = made.commit({**attributes, "agent.py": b"old\n"})
    new = made.commit({**attributes, "agent.py": b"new\n"})
    git(made.repository, "update-ref", "HEAD", new)  # where newer gits look for attributes
    for key in ("diff.external", "diff.evil.command", "diff.evil.textconv", "core.fsmonitor"):
        git(made.repository, "config", key, f"touch {tmp_path}/obeyed; echo")
    (made.repository / "info").mkdir(exist_ok=True)
    (made.repository / "info" / "attributes").write_text("*.py diff=evil\n")
    found = tree_diff.diff(made.repository, old, new, 9999)
    assert "-old\n+new\n" in found.text and not (tmp_path / "obeyed").exists()


def test_a_run_of_80_agents_and_60_tasks_stays_under_5_mb(tmp_path):
    made = Maker(tmp_path)
    code = "".join(f"def operator_{n}(tree):\n    return tree\n" for n in range(300))
    trees = [made.commit({"agent.py": (code + f"x = {n}\n" * 900).encode()}) for n in range(80)]
    made.text("f", "log.txt", "tried <candidate> 'x' & more\n" * 400)
    made.text("f", "raw.txt", "because of <this> and that\n" * 400)
    made.text("f", "answer.txt", "if a < b and b > c:\n" * 300)
    lines = []
    for agent in range(80):
        child = {"agent": agent, "parent": agent // 2 if agent else None, "tree": trees[agent]}
        child |= {"generation": 0, "slot": 0, "reason": "", "entry": "p", "flags": []}
        child |= {"diagnosis": "it fails at <this>\n" * 500, "usage": NOTHING, "seconds": 1.0}
        lines.append({"event": "child", "time": 1.0, "files": "f", **child})
        for task in range(60):
            tried = {"agent": agent, "task": f"program{task}-7", "seed": 1 << 60, "split": "train"}
            tried |= {"group": f"program{task // 4}", "solved": False, "partial": 0.25}
            tried |= {"empty": False, "reason": "no candidate passed all of the tests"}
            tried |= {"tests": {"one": True, "two": False}, "usage": NOTHING, "cpu_s": 1.0}
            lines.append({"event": "evaluated", "time": 1.0, "wall_s": 1.0, "files": "f", **tried})
    with open(made.folder / "events.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    path = write_page(tmp_path)
    assert path.stat().length < 5_000_000
    told = Page(path.read_text()).said("a0-79")
    assert re.search(r"Attempts \d+ of 60, those unsolved first", told)
    assert re.search(r"Diff against 39 [\d.]+ kB, of which the first [\d.]+ kB are shown", told)


# -- the lineage


@st.composite
def forests(draw):
    count = draw(st.integers(1, 60))
    parents = [None, *(draw(st.integers(0, n - 1)) for n in range(1, count))]
    failed = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    best, line = draw(st.integers(0, count - 1)), set()
    agent = best
    while agent is not None:
        line.add(agent)
        agent = parents[agent]
    return best, [
        Drawn(n, parents[n], n / 60, failed[n] and n not in line, n in line, "", f"#{n}")
        for n in range(count)
    ]


def drawn(svg):
    """href -> (x, y, width, height), and the paths as (x0, y0, trunk's x | None, x1, y1)."""
    found = re.findall(
        r'<a href="(#\d+)".*?<rect x="([\d.]+)" y="([\d.]+)" width="(\d+)" height="(\d+)"', svg
    )
    pills = {href: tuple(map(float, box)) for href, *box in found}
    paths = []
    for d in re.findall(r' d="([^"]*)"', svg):
        numbers = [float(n) for n in re.findall(r"[\d.]+", d)]
        if "V" in d:
            x0, y0, trunk, to, *_, x1 = numbers
            paths.append((x0, y0, trunk, x1, to + 6))
        else:
            x0, y0, x1 = numbers
            paths.append((x0, y0, None, x1, y0))
    return pills, paths


@settings(max_examples=150)
@given(forests())
def test_no_agents_overlap_and_no_lines_cross(forest):
    best, agents = forest
    pills, paths = drawn(str(lineage(agents, best, 1.0)))
    assert len(pills) == len(agents)
    boxes = list(pills.values())
    for i, (x, y, w, h) in enumerate(boxes):
        for u, v, s, t in boxes[:i]:
            assert x + w <= u or u + s <= x or y + h <= v or v + t <= y
    for x0, y0, trunk, _, y1 in paths:
        if trunk is None:
            continue
        assert not any(x < trunk < x + w and y0 < y + 9 < y1 for x, y, w, _ in boxes)
        for a0, b0, other, a1, b1 in paths:
            if a0 == x0 and b0 == y0:
                continue  # of one parent: they share the trunk
            stretches = [(a0, a1, b0)] if other is None else [(a0, other, b0), (other, a1, b1)]
            assert not any(s < trunk < e and y0 < y < y1 for s, e, y in stretches)
    by_id = {agent.id: agent for agent in agents}
    straight = {pills[f"#{n}"][1] for n, agent in by_id.items() if agent.on_best}
    assert len(straight) == 1
    for agent in agents:
        if agent.parent is not None:
            assert pills[f"#{agent.id}"][0] > pills[f"#{agent.parent}"][0]


@pytest.mark.parametrize("parent_of", [lambda n: n - 1, lambda n: 0, lambda n: n // 2])
def test_a_thousand_agents_are_drawn(parent_of):
    agents = [
        Drawn(n, parent_of(n) if n else None, 0.5, n % 3 == 1, n == 0, "", f"#{n}")
        for n in range(1000)
    ]
    pills, _ = drawn(str(lineage(agents, 0, 0.5)))
    assert len(pills) == len(set(pills.values())) == 1000


def test_a_parent_that_is_not_there_breaks_nothing():
    lost = Drawn(5, 3, 0.1, False, False, "", "#5")
    first = Drawn(0, None, 0.1, False, False, "", "#0")
    pills, paths = drawn(str(lineage([first, lost], None, 1.0)))
    assert pills["#0"][1] != pills["#5"][1] and paths == []


def test_colours_go_from_dark_to_light_and_carry_text_that_is_read():
    assert colour(0.0, 0.4) == ("#440154", "#ffffff")  # viridis' two ends
    assert colour(0.4, 0.4) == colour(9.0, 0.4) == ("#fde725", "#000000")


# -- watching, and the command


def test_watching_rewrites_when_there_is_news_and_stops_when_it_is_over(tmp_path):
    made = Maker(tmp_path)
    path, told, seen = tmp_path / "report.html", [], []

    def sleep(seconds):
        assert seconds == 7
        seen.append((path.stat().st_ino, path.read_text()))
        if len(seen) == 2:
            made.child(0, None, {"agent.py": b"a"})
        if len(seen) == 3:
            made.end(best=0)

    watch(tmp_path, None, 7, wrote=told.append, sleep=sleep)
    assert [os.fspath(p) for p in told] == [str(path)] and len(seen) == 3
    assert seen[0] == seen[1] and seen[1][0] != seen[2][0]
    for _, text in seen:
        assert '<meta http-equiv="refresh" content="7">' in text
    assert 'id="a0-0"' in seen[2][1] and 'id="a0-0"' not in seen[1][1]
    assert "refresh" not in path.read_text() and "stopped: the end" in path.read_text()


def test_watching_ends_by_ctrl_c_and_leaves_a_page_that_rests(tmp_path):
    small(tmp_path)

    def sleep(_):
        raise KeyboardInterrupt

    watch(tmp_path, tmp_path / "out" / "x.html", 5, sleep=sleep)
    assert "refresh" not in (tmp_path / "out" / "x.html").read_text()


def test_watching_a_stopped_run_without_a_summary_ends(tmp_path):
    small(tmp_path).end()
    looks = []
    watch(tmp_path, None, 1, sleep=looks.append)
    assert looks == [1, 1, 1]


def test_watching_goes_on_where_a_resume_came_after_the_summary(tmp_path):
    made = small(tmp_path)
    made.end(best=2)
    os.utime(tmp_path / "summary.json", (1, 1))
    looks = []

    def sleep(_):
        looks.append(1)
        if len(looks) == 6:
            os.utime(tmp_path / "summary.json")

    made.log.append("run", seed=0)
    watch(tmp_path, None, 1, sleep=sleep)
    assert len(looks) == 6


def test_the_command(tmp_path, capsys, monkeypatch):
    small(tmp_path / "r").end(best=2)
    monkeypatch.chdir(tmp_path)
    cli.main(["report", "r"])
    assert capsys.readouterr().out.strip() == "r/report.html"
    assert "-b = 2" in Page((tmp_path / "r" / "report.html").read_text()).said("a0-2")
    cli.main(["report", str(tmp_path / "r"), "-o", str(tmp_path / "o"), "--watch", "1"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "o" / "report.html")
    (tmp_path / "other").mkdir()
    for arguments, why in (
        ([str(tmp_path / "r"), str(tmp_path / "r")], "one DGM run a page"),
        ([str(tmp_path / "other"), "--watch", "3"], "is no run of DGM"),
        ([str(tmp_path / "r"), "--watch", "0"], "watch=0"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(["report", *arguments])
        assert ended.value.code == 2
        assert why in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_two_writes_are_the_same_bytes_and_need_no_jax(tmp_path):
    small(tmp_path).end(best=2)
    first = write_page(tmp_path).read_bytes()
    code = "import sys; from launch.report import Report, report; report(Report((sys.argv[1],)))"
    code += "; assert 'jax' not in sys.modules"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    assert (tmp_path / "report.html").read_bytes() == first
