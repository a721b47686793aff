"""Agents as commits of a bare repository: what goes in comes out, whatever it is called or holds."""

import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfevolve_jax.dgm import trees
from selfevolve_jax.errors import UserError
from selfevolve_jax.report import tree_diff

NAMES = st.text("ab .-_éж'#{}~$", min_size=1, max_size=6).filter(lambda s: s.strip(". ") == s)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TREES = st.dictionaries(PATHS, st.binary(max_size=60), min_size=1, max_size=6).filter(
    lambda tree: trees.refusal(tree) == ""
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return trees.create(tmp_path_factory.mktemp("run") / trees.NAME)


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(tree=TREES, child=TREES)
def test_what_goes_in_comes_out_and_the_same_files_are_the_same_commit(repository, tree, child):
    first = trees.put(repository, 0, tree, None)
    second = trees.put(repository, 1, child, first)
    assert trees.get(repository, first) == tree and trees.get(repository, second) == child
    assert trees.put(repository, 1, child, first) == second


def test_the_parent_is_in_the_history(repository):
    first = trees.put(repository, 5, {"a.py": b"x = 1\n"}, None)
    second = trees.put(repository, 6, {"a.py": b"x = 2\n"}, first)
    git = ["git", "--git-dir", str(repository)]
    told = subprocess.run([*git, "rev-list", "refs/agents/6"], capture_output=True, text=True)
    assert told.stdout.split() == [second, first]
    assert subprocess.run([*git, "fsck", "--strict"], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/passwd", "../a", "a/../b", "a//b", "a/.", ".git/config", "x/.GIT/hooks"),
        *(".gitattributes", ".gitmodules", "git~1/..", 'a"b', "a\\b", "a\nb", "a\x1b[2J"),
        *("", "a/", "x" * 201),
    ],
)
def test_a_path_that_is_not_plain_is_refused_by_name(repository, path):
    assert "path" in trees.refusal({path: b""})
    with pytest.raises(ValueError, match="path"):
        trees.put(repository, 9, {path: b"", "ok.py": b""}, None)


def test_trees_too_large_empty_or_in_conflict_are_refused():
    assert "no files" in trees.refusal({})
    assert "2001 files" in trees.refusal({f"f{i}": b"" for i in range(2001)})
    assert "bytes" in trees.refusal({"a": b"x" * (trees.MOST_BYTES + 1)})
    assert "a file" in trees.refusal({"a": b"", "a/b": b""})


def test_a_commit_that_is_none_is_refused(repository):
    for name in ("--output=/tmp/x", "HEAD", "", "a" * 39):
        with pytest.raises(UserError, match="not a commit"):
            trees.get(repository, name)


def test_nothing_of_the_machine_or_the_tree_runs(repository, tmp_path, monkeypatch):
    """A diff driver and a filter that the user's own configuration names."""
    witness = tmp_path / "ran"
    config = tmp_path / "config"
    config.write_text(
        f'[diff "evil"]\n\ttextconv = "touch {witness}; cat"\n\tcommand = touch {witness}\n'
        f'[core]\n\tattributesFile = {tmp_path}/attributes\n\tfsmonitor = "touch {witness}"\n'
    )
    (tmp_path / "attributes").write_text("* diff=evil\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", f"touch {witness}")
    first = trees.put(repository, 20, {"a": b"1\n"}, None)
    second = trees.put(repository, 21, {"a": b"2\n"}, first)
    assert "+2" in tree_diff.diff(repository, first, second, 9999).text
    assert trees.get(repository, second) == {"a": b"2\n"}
    assert not witness.exists()
