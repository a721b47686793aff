"""Patches: applied exactly or not at all; made by git in a sandbox, they take one tree to the other."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfevolve_jax.dgm.sandbox import patch
from selfevolve_jax.dgm.sandbox.bubblewrap import open_bubblewrap
from selfevolve_jax.dgm.sandbox.patch import PatchError

TREE = {"a.txt": b"one\ntwo\nthree\n", "d/b.txt": b"no end", "empty": b"", "crlf": b"x\r\ny\r\n"}


def headed(name: str, *lines: str) -> str:
    return "\n".join(
        (f"diff --git a/{name} b/{name}", f"--- a/{name}", f"+++ b/{name}", *lines, "")
    )


def test_a_change_by_hand():
    text = headed("a.txt", "@@ -1,3 +1,4 @@", " one", "-two", "+2", "+2.5", " three")
    assert patch.apply(TREE, text) == {**TREE, "a.txt": b"one\n2\n2.5\nthree\n"}
    assert TREE["a.txt"] == b"one\ntwo\nthree\n"


def test_no_newline_at_the_end():
    text = headed("d/b.txt", "@@ -1 +1 @@", "-no end", "\\ No newline at end of file", "+an end")
    assert patch.apply(TREE, text)["d/b.txt"] == b"an end\n"
    back = headed("d/b.txt", "@@ -1 +1 @@", "-an end", "+no end", "\\ No newline at end of file")
    assert patch.apply(patch.apply(TREE, text), back) == TREE


def test_new_and_deleted_and_empty():
    text = (
        "diff --git a/new b/new\nnew file mode 100644\n--- /dev/null\n+++ b/new\n@@ -0,0 +1 @@\n+x\n"
        "diff --git a/void b/void\nnew file mode 100644\nindex 0000000..e69de29\n"
        "diff --git a/empty b/empty\ndeleted file mode 100644\nindex e69de29..0000000\n"
        "diff --git a/a.txt b/a.txt\ndeleted file mode 100644\n--- a/a.txt\n+++ /dev/null\n"
        "@@ -1,3 +0,0 @@\n-one\n-two\n-three\n"
    )
    expected = {"d/b.txt": b"no end", "crlf": TREE["crlf"], "new": b"x\n", "void": b""}
    assert patch.apply(TREE, text) == expected


def test_carriage_returns_are_content():
    text = headed("crlf", "@@ -1,2 +1,2 @@", "-x\r", "+z\r", " y\r")
    assert patch.apply(TREE, text)["crlf"] == b"z\r\ny\r\n"
    with pytest.raises(PatchError, match="does not fit"):
        patch.apply(TREE, headed("crlf", "@@ -1,2 +1,2 @@", "-x", "+z", " y"))


GOOD = headed("a.txt", "@@ -1,3 +1,3 @@", "-one", "+1", " two", " three")
REFUSED = {
    "context that differs": headed("a.txt", "@@ -1,3 +1,3 @@", " One", "-two", "+2", " three"),
    "at another line": headed("a.txt", "@@ -2,2 +2,2 @@", " one", "-two", "+2"),
    "not there": headed("no", "@@ -1 +1 @@", "-a", "+b"),
    "already there": "--- /dev/null\n+++ b/a.txt\n@@ -0,0 +1 @@\n+x\n",
    "deleted in part": "--- a/a.txt\n+++ /dev/null\n@@ -1 +0,0 @@\n-one\n",
    "upwards": headed("../a.txt", "@@ -0,0 +1 @@", "+x"),
    "new and upwards": "--- /dev/null\n+++ b/d/../../x\n@@ -0,0 +1 @@\n+x\n",
    "absolute": "--- /dev/null\n+++ /etc/passwd\n@@ -0,0 +1 @@\n+x\n",
    "absolute below the prefix": "--- /dev/null\n+++ b//etc/passwd\n@@ -0,0 +1 @@\n+x\n",
    "git's own": "--- /dev/null\n+++ b/.git/config\n@@ -0,0 +1 @@\n+x\n",
    "quoted and upwards": '--- /dev/null\n+++ "b/\\056\\056/x"\n@@ -0,0 +1 @@\n+x\n',
    "a file as a folder": "--- /dev/null\n+++ b/a.txt/x\n@@ -0,0 +1 @@\n+x\n",
    "a folder as a file": "--- /dev/null\n+++ b/d\n@@ -0,0 +1 @@\n+x\n",
    "two names": "--- a/a.txt\n+++ b/b.txt\n@@ -1 +1 @@\n-one\n+1\n",
    "a rename": "diff --git a/a.txt b/b.txt\nsimilarity index 100%\nrename from a.txt\nrename to b\n",
    "a link": "diff --git a/l b/l\nnew file mode 120000\n--- /dev/null\n+++ b/l\n@@ -0,0 +1 @@\n+/\n",
    "binary": "diff --git a/a.txt b/a.txt\nindex 1..2 100644\nGIT binary patch\nliteral 3\nabc\n",
    "differing binaries": "diff --git a/a.txt b/a.txt\nBinary files a/a.txt and b/a.txt differ\n",
    "twice": GOOD + headed("a.txt", "@@ -2 +2 @@", "-two", "+2"),
    "more than it counts": GOOD + "+four\n",
    "less than it counts": headed("a.txt", "@@ -1,3 +1,3 @@", "-one", "+1", " two"),
    "hunks that overlap": headed(
        "a.txt", "@@ -1,2 +1 @@", " one", "-two", "@@ -2 +1 @@", "-two", "+2"
    ),
    "one good, one bad": GOOD + headed("no", "@@ -1 +1 @@", "-a", "+b"),
    "words": "Here is the patch you asked for.\n" + GOOD,
    "no +++": "--- a/a.txt\n@@ -1 +1 @@\n-one\n+1\n",
    "no end in the middle": headed(
        "a.txt", "@@ -1 +1 @@", "-one", "+1", "\\ No newline at end of file"
    ),
    "surrogates": headed("a.txt", "@@ -1 +1 @@", "-one", "+\ud800"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what):
    before = dict(TREE)
    with pytest.raises(PatchError):
        patch.apply(TREE, REFUSED[what])
    assert before == TREE


def test_nothing_is_no_change():
    assert patch.apply(TREE, "") == TREE


# Round trips, with real git in a real sandbox

NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=6
).filter(lambda n: n not in (".", "..") and n.lower() != ".git")
PATHS = st.lists(NAMES, min_size=1, max_size=2).map("/".join)
TEXT = st.lists(
    st.sampled_from(
        ["a", "b", "", "é", " x", "-m", "+p", "@@ -1 +1 @@", "--- a/x", "\\", "\r", "\x1b"]
    ),
    max_size=12,
).flatmap(lambda lines: st.sampled_from(["\n".join(lines), "".join(x + "\n" for x in lines)]))
TREES = st.dictionaries(PATHS, TEXT.map(str.encode), max_size=5).filter(
    lambda tree: not any(a != b and b.startswith(a + "/") for a in tree for b in tree)
)


@pytest.fixture(scope="module")
def box():
    with open_bubblewrap(workers=1) as box:
        yield box


@pytest.mark.sandbox
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=TREES, after=TREES, same=st.booleans())
def test_round_trip(box, before, after, same):
    if same:  # files in common, so that not all is new or deleted
        after = {**dict(zip(before, after.values(), strict=False)), **after}
        after = {p: c for p, c in after.items() if not any(q.startswith(p + "/") for q in after)}
    try:
        text = patch.diff(before, after, box)
    except PatchError as e:
        assert "git takes no file of that name" in str(e)
        return
    assert patch.apply(before, text) == after
    assert (text == "") == (before == after)


@pytest.mark.sandbox
def test_git_applies_what_diff_makes(box, tmp_path):
    after = {
        **TREE,
        "a.txt": b"one\n2\nthree",
        "new file": b"x\n",
        '\N{SNOWMAN}/\t"n\\ame': b"y\n",
        "void": b"",
        "crlf": b"x\r\nz\r\n",
        ".gitattributes": b"* -diff\n*.txt diff=evil\n",
        ".gitignore": b"*\n",
    }
    del after["empty"], after["d/b.txt"]
    text = patch.diff(TREE, after, box)
    assert patch.apply(TREE, text) == after
    for path, content in TREE.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "apply"], input=text.encode(), cwd=tmp_path, check=True)
    found = {
        str(p.relative_to(tmp_path)): p.read_bytes()
        for p in tmp_path.rglob("*")
        if p.is_file() and ".git" not in p.relative_to(tmp_path).parts
    }
    assert found == after


@pytest.mark.sandbox
def test_hostile_trees_run_nothing(box):
    """A tree's config, attributes and hooks are content to diff, and are not obeyed."""
    evil = b"[core]\n\tfsmonitor = touch /tmp/owned\n[diff]\n\texternal = touch /tmp/owned\n"
    after = {**TREE, "config": evil, "hooks/post-checkout": b"#!/bin/sh\n", ".gitconfig": evil}
    text = patch.diff(TREE, {**after, ".gitattributes": b"* diff=x filter=x binary\n"}, box)
    assert "fsmonitor" in text and "+* diff=x" in text
    with pytest.raises(PatchError, match="git's own"):
        patch.diff(TREE, {".git/config": evil}, box)


@pytest.mark.sandbox
@pytest.mark.parametrize("content", [b"\0", b"\xff", "é".encode("latin-1")])
def test_what_is_not_text_is_refused_by_name(box, content):
    with pytest.raises(PatchError, match=r"image\.png is not text"):
        patch.diff(TREE, {**TREE, "image.png": content}, box)
    binary = {"image.png": content, "a": b"1\n"}
    assert "image" not in patch.diff(binary, {**binary, "a": b"2\n"}, box)  # it has not changed
