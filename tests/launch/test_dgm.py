"""`selfevolve dgm`: what is typed wrongly is one message and exit code 2, before anything is written;
and jax is never imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs import dgm as recipes
from launch.cli import main
from selfevolve_jax import run_dir
from selfevolve_jax.dgm.benchmarks.open import BenchmarkConfig
from selfevolve_jax.dgm.recipe import DGMRecipe, RepairConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty working folder; a default run directory would show in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, *arguments) -> str:
    """The text of the one box, without its frame and line breaks."""
    with pytest.raises(SystemExit) as caught:
        main(["dgm", *map(str, arguments)])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err and out == ""
    # Ours has a frame; tyro's, whose frame depends on the terminal, ends with where help is.
    assert err.count("╭─ selfevolve") + err.count("For full helptext") == 1, err
    return " ".join(" ".join(line.strip("│╭╮╰╯─ ") for line in err.splitlines()).split())


def says(message, words) -> bool:
    """Wherever the box broke its lines, as it does in a long path."""
    return "".join(words.split()) in "".join(message.split())


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("", ("needs a recipe", "quickstart, polyglot, swe-bench, human-eval")),
        ("quickest", ("recipe 'quickest' is unknown", "quickstart")),
        ("polyglot --models.coding.model m", ("polyglot needs --benchmark.path", "Aider-AI")),
        ("swe-bench --models.coding.model m", ("swe_bench needs --benchmark.path", "parquet")),
        ("human-eval", ("the coding model: model is empty",)),
        ("human-eval --arms own_parts", ("own_parts", "program repair alone")),
        ("human-eval --benchmark.train 0", ("train=0",)),
        ("human-eval --benchmark.agent-s -5", ("agent_s=-5",)),
        ("human-eval --models.coding.model m --agent /nowhere", ("/nowhere is no coding agent",)),
        ("human-eval --models.coding.price-in -1", ("price_in=-1",)),
        ("human-eval --models.coding.base-url localhost", ("base_url='localhost'",)),
        ("human-eval --models.coding.model m --models.budget.dollars 1", ("costs nothing",)),
        ("human-eval --models.budget.tokens -1", ("budget.tokens=-1",)),
        ("human-eval --models.diagnosis.max-tokens 9", ("diagnosis.model",)),
        ("quickstart --arms dgm foo", ("invalid choice 'foo'", "random_parents")),
        ("quickstart --arms", ("name some",)),
        ("quickstart --arms dgm dgm", ("each once",)),
        ("quickstart --generations -3", ("generations=-3 must be at least 1",)),
        ("quickstart --children 0", ("children=0",)),
        ("quickstart --workers 0", ("workers=0",)),
        ("quickstart --seed -1", ("seed=-1",)),
        ("quickstart --seed x", ("--seed", "'x'")),
        ("quickstart --hours 0", ("hours=0",)),
        ("quickstart --benchmark.candidates -1", ("-1 candidates",)),
        ("quickstart --stages.threshold -1", ("threshold=-1",)),
        ("quickstart --selection.sharpness -1", ("sharpness=-1",)),
        ("quickstart --sandbox none", ("invalid choice 'none'", "bubblewrap")),
        ("quickstart --models.coding.model m", ("needs no model",)),
        ("quickstart --agent /nowhere", ("agent=/nowhere", "Leave it out")),
        ("quickstart --resume", ("--resume needs --run-dir",)),
        ("quickstart --run-dir gs://bucket/run", ("local disk",)),
        ("quickstart --generation 3", ("--generation", "nrecognized")),
    ],
)
def test_what_is_typed_wrongly_is_one_message(capsys, place, typed, words):
    said = refused(capsys, *typed.split())
    for each in words:
        assert says(said, each), said
    assert not list(place.iterdir())


def test_a_folder_in_use_and_another_config_are_refused(capsys, place):
    (place / "used").mkdir()
    (place / "used" / "notes.txt").write_text("mine")
    said = refused(capsys, "quickstart", "--run-dir", "used")
    assert says(said, "used already exists and is not empty") and says(said, "--resume")
    (place / "file").write_text("")
    assert says(refused(capsys, "quickstart", "--run-dir", "file"), "file is a file")
    run_dir.create(place / "run", run_dir.jsonable(recipes.quickstart()), False)
    before = {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file()}
    given = ("quickstart", "--run-dir", "run", "--resume", "--children", "3", "--seed", "4")
    said = refused(capsys, *given)
    for each in ("children", "2", "3", "seed", "0", "4"):
        assert each in said
    assert before == {path: path.read_bytes() for path in (place / "run").rglob("*")}


def test_help_lists_the_recipes_and_their_options(capsys):
    main(["dgm", "--help"])
    said = capsys.readouterr().out
    for recipe in ("quickstart", "polyglot", "swe-bench", "human-eval"):
        assert recipe in said
        with pytest.raises(SystemExit) as caught:
            main(["dgm", recipe, "--help"])
        assert caught.value.code == 0
        options = capsys.readouterr().out
        for option in ("--run-dir", "--resume", "--dry-run", "--generations", "--stages.sizes"):
            assert option in options
        assert ("--benchmark.path" in options) == (recipe != "quickstart")
        assert ("--benchmark.candidates" in options) == (recipe == "quickstart")


def test_a_dry_run_shows_the_config_and_touches_nothing(capsys, place):
    main(["dgm", "polyglot", "--dry-run", "--run-dir", "run"])
    shown = json.loads(capsys.readouterr().out)
    assert shown == run_dir.jsonable(recipes.polyglot()) and not list(place.iterdir())


def test_the_recipes_are_at_the_papers_settings():
    """notes/dgm.md: 80 agents, 2 at a time on SWE-bench and 4 on Polyglot; 10, 50 and 140 tasks, and 10
    and 50; from 40% on; λ = 10, α0 = 0.5."""
    for recipe, name, at_a_time, sizes in (
        (recipes.swe_bench(), "swe_bench", 2, (10, 50, 140)),
        (recipes.polyglot(), "polyglot", 4, (10, 50)),
        (recipes.human_eval(), "human_eval", 4, (10, 50)),
    ):
        assert isinstance(recipe, DGMRecipe) and isinstance(recipe.benchmark, BenchmarkConfig)
        assert recipe.benchmark.name == name and recipe.benchmark.train == sum(sizes)
        assert recipe.generations * recipe.children == 80 and recipe.children == at_a_time
        assert recipe.stages.sizes == sizes
        assert (recipe.stages.threshold, recipe.stages.top, recipe.gate) == (0.4, 2, "all")
        chosen = recipe.selection
        assert (chosen.way, chosen.sharpness, chosen.midpoint) == ("dgm", 10.0, 0.5)
        assert recipe.benchmark.held_out > 0
    assert isinstance(recipes.quickstart().benchmark, RepairConfig)


IMPORTS = """
import sys
import launch.cli
try:
    launch.cli.main(sys.argv[1:])
except SystemExit:
    pass
heavy = {name.partition(".")[0] for name in sys.modules}
print(sorted(heavy & {"jax", "jaxlib", "flax", "orbax", "tensorflow", "torch", "transformers"}))
"""


@pytest.mark.parametrize(
    "typed",
    [
        "dgm quickstart --dry-run",
        "dgm polyglot --help",
        # as far as opening the models
        "dgm human-eval --models.coding.model m --models.coding.base-url http://127.0.0.1:9/v1 "
        "--models.coding.attempts 1 --run-dir run",
    ],
)
def test_jax_is_never_imported(place, typed):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *typed.split()],
        cwd=place,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(place)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]", done.stdout[-300:]
