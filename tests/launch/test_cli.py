"""What a person types: every mistake is one boxed message, and every command does what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from orbax.checkpoint import v1 as ocp

from launch.cli import main
from models.config import ModelConfig
from selfevolve_jax import checkpoint, run_dir, sharding
from selfevolve_jax.tasks import arithmetic

ROOT = Path(__file__).resolve().parents[2]
# Model, trainer and optimiser as in test_trainer.py, so that nothing compiles twice.
TINY = (
    "--policy.model.d-model 32 --policy.model.n-layers 1 --policy.model.head-dim 8 "
    "--policy.model.d-ff 48 --policy.model.unroll 1 --policy.steps 5 --policy.batch 16 "
    "--policy.numbers 4 --task.numbers 4 --task.train-rows 64 --task.held-out-rows 8 "
    "--trainer.prompts-per-step 4 --trainer.samples-per-prompt 4 --trainer.shared-prompt 1 "
    "--trainer.max-new-tokens 5 --trainer.eval-samples 2 --trainer.steps 6 "
    "--trainer.save-every 2 --trainer.eval-every 3 --trainer.rollout.slots 16 "
    "--trainer.optimizer.learning-rate 1e-3 --arms srt"
)
QUICKSTART = ("srt", "quickstart", *TINY.split())


@pytest.fixture(scope="module")
def finished(tmp_path_factory, mesh1):
    """A run made by the CLI; from here on all commands of this module see one device."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cli")
        patch.setenv("SELFEVOLVE_CACHE", str(folder / "cache"))
        make_mesh = sharding.make_mesh
        patch.setattr(
            sharding, "make_mesh", lambda config: make_mesh(config, list(mesh1.devices.flat))
        )
        main([*QUICKSTART, "--run-dir", str(folder / "run")])
        yield folder / "run"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder; a default run directory or cache would show in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SELFEVOLVE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def refused(capsys, *arguments, code=2):
    """The text of the one box on stderr, its lines joined."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    assert caught.value.code == code
    out, err = capsys.readouterr()
    assert out == "" or "Traceback" not in out
    assert "Traceback" not in err
    if "For full helptext" in err:  # tyro's own; it draws the box with the characters of stderr
        assert err.count("For full helptext") == 1
        return " ".join(err.split())
    assert err.startswith("╭") and err.count("╭") == 1 and err.rstrip().endswith("╯"), err
    return " ".join(line.strip("│ ") for line in err.splitlines()[1:-1]).replace("- ", "-")


def says(message, *words):
    """Whether the words are there, wherever the box broke its lines."""
    return all("".join(word.split()) in "".join(message.split()) for word in words)


def tree(folder):
    return sorted(
        (str(p.relative_to(folder)), p.read_bytes() if p.is_file() else None)
        for p in folder.rglob("*")
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["trane"],
            [
                "'trane' is unknown",
                "srt, mm-upt, ui-genie, dgm, agent-sft, android-control, android-world, evaluate",
            ],
        ),
        (["srt"], ["needs a recipe", "quickstart"]),
        (["srt", "--resume"], ["needs a recipe"]),
        (["srt", "nope"], ["'nope' is unknown", "quickstart", "FILE.py:NAME"]),
        (["srt", "none.py:mine"], ["none.py does not exist"]),
        ([*QUICKSTART, "--trainer.stepss", "3"], ["--trainer.stepss", "--trainer.steps"]),
        ([*QUICKSTART, "--trainer.steps", "many"], ["--trainer.steps", "many"]),
        ([*QUICKSTART, "--trainer.steps", "-3"], ["trainer.steps=-3 must be at least 1"]),
        ([*QUICKSTART, "--arms", "srt", "magic"], ["arms=srt magic", "ground_truth"]),
        ([*QUICKSTART, "--seed", "-1"], ["seed=-1"]),
        (
            [*QUICKSTART, "--trainer.shared-prompt", "3"],
            ["shared_prompt=3 does not divide", "samples_per_prompt=4"],
        ),
        (
            [*QUICKSTART, "--trainer.grpo.accumulate", "3"],
            ["grpo.accumulate=3", "multiple of 3"],
        ),
        ([*QUICKSTART, "--mesh.fsdp", "3"], ["mesh.fsdp=3", "1 device(s)"]),
        ([*QUICKSTART, "--trainer.sampling.temperature", "0"], ["temperature=0", "vote"]),
        ([*QUICKSTART, "--trainer.sampling.top-p", "1.5"], ["top_p=1.5"]),
        ([*QUICKSTART, "--policy.model.n-kv-heads", "3"], ["n_kv_heads"]),
        ([*QUICKSTART, "--policy.model.vocab-size", "8"], ["vocab_size=8", "16"]),
        ([*QUICKSTART, "--task.train-rows", "0"], ["train_rows=0"]),
        ([*QUICKSTART, "--task.train-rows", "200000"], ["too few for"]),
        ([*QUICKSTART, "--resume"], ["--resume needs --run-dir"]),
        (["evaluate", "none"], ["none does not exist"]),
        (["evaluate", "none", "--k", "0"], ["k=0"]),
        (["evaluate", "none", "--max-new-tokens", "0"], ["max_new_tokens=0"]),
        (["evaluate", "none", "--k", "4", "--pass-at", "2", "5"], ["pass_at=5", "k=4"]),
        (["evaluate", "none", "--suite", "none.jsonl"], ["none.jsonl", "no such file"]),
        (["label", "none"], ["--out"]),
        (["label", "none", "--out", "x"], ["none does not exist"]),
        (["label", "none", "--out", "x", "--samples", "0"], ["samples=0"]),
        (["label", "none", "--out", "x", "--sampling.temperature", "0"], ["temperature=0", "vote"]),
        (["generate", "none", "--prompt", "1+1="], ["none does not exist"]),
        (["generate", "none", "--prompt", ""], ['prompt=""']),
        (["generate", "none", "--prompt", "1", "--sampling.temperature", "-1"], ["temperature=-1"]),
        (["report", "none"], ["none"]),
        (["doctor", "--all"], ["--all"]),
    ],
)
def test_a_mistake_is_one_box_and_makes_nothing(finished, place, capsys, arguments, words):
    message = refused(capsys, *arguments)
    assert says(message, *words), message
    assert tree(place) == []


def test_a_run_directory_in_use_is_refused(finished, capsys):
    before = tree(finished)
    message = refused(capsys, *QUICKSTART, "--run-dir", finished)
    assert "already exists" in message and "--resume" in message
    assert tree(finished) == before


def test_a_resume_of_what_is_no_run_is_refused(finished, place, capsys):
    (place / "papers").mkdir()
    (place / "papers" / "thesis.tex").write_text("x")
    assert "no config.json" in refused(
        capsys, *QUICKSTART, "--run-dir", place / "papers", "--resume"
    )
    assert [name for name, _ in tree(place)] == ["papers", "papers/thesis.tex"]


@pytest.mark.parametrize(
    ("option", "shown"),
    [
        (["--policy.model.d-model", "64"], "policy.model.d_model: 32 -> 64"),
        (["--trainer.samples-per-prompt", "8"], "trainer.samples_per_prompt: 4 -> 8"),
    ],
)
def test_a_resume_that_changes_a_shape_shows_the_difference(finished, capsys, option, shown):
    before = tree(finished)
    assert shown in refused(capsys, *QUICKSTART, *option, "--run-dir", finished, "--resume")
    assert tree(finished) == before


@pytest.fixture(scope="module")
def texts_policy(finished, tmp_path_factory):
    """A policy whose tokenizer has an end of text, as tasks of text need."""
    folder = tmp_path_factory.mktemp("texts") / "policy"
    text = arithmetic.tokenizer()
    text.eos_token = arithmetic.END
    model = checkpoint.read_model(finished / "arms" / "srt")[0]
    checkpoint.save_policy_files(folder, model, text, (text.eos_token_id,))
    step = finished / "arms" / "srt" / checkpoint.LATEST / "6"
    params = ocp.load_checkpointables(step, {"params": None})["params"]
    ocp.save_checkpointables(folder / checkpoint.LATEST / "6", {"params": params})
    return folder


RECIPE_FILE = """
from selfevolve_jax.srt.recipe import CheckpointConfig, SRTRecipe
from selfevolve_jax.tasks.dataset import DataConfig
from selfevolve_jax.trainer import TrainerConfig

def mine():
    return SRTRecipe(
        task=DataConfig({data!r}, held_out_fraction=0.0, pattern="digits", equivalence="exact"),
        policy=CheckpointConfig({policy!r}),
        trainer=TrainerConfig(steps=1, prompts_per_step=4, samples_per_prompt=4, max_new_tokens=5),
    )
"""


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (None, [], ["data.jsonl"]),
        ("", [], ["data.jsonl"]),
        ('{"question": "1+1=", "answer": "2"}\n{"question": 3}\n', [], ["data.jsonl", "2"]),
        (
            '{"question": "1+1=", "answer": "2"}\n',
            ["--task.max-prompt-tokens", "3"],
            ["longer than max_prompt_tokens=3", "4 tokens", "--task.max-prompt-tokens 4"],
        ),
    ],
    ids=["missing", "empty", "bad row", "over-long"],
)
def test_a_data_set_that_is_no_use_is_refused(texts_policy, place, capsys, content, options, words):
    data = place / "data.jsonl"
    if content is not None:
        data.write_text(content)
    recipe = place / "recipe.py"
    recipe.write_text(RECIPE_FILE.format(data=str(data), policy=str(texts_policy)))
    before = tree(place)
    message = refused(
        capsys,
        "srt",
        f"{recipe}:mine",
        *options,
        "--task.pattern",
        r"\d",
        "--run-dir",
        place / "run",
    )
    assert says(message, *words), message
    assert [x for x in tree(place) if "__pycache__" not in x[0]] == before


def test_a_recipe_file_works(texts_policy, place, capsys):
    recipe = place / "recipe.py"
    recipe.write_text(RECIPE_FILE.format(data="x.jsonl", policy=str(texts_policy)))
    main(["srt", f"{recipe}:mine", "--trainer.steps", "7", "--dry-run"])
    out = capsys.readouterr().out
    config = json.loads(out[: out.index("\n}") + 2])
    assert config["trainer"]["steps"] == 7 and config["policy"]["path"] == str(texts_policy)
    message = refused(capsys, "srt", f"{recipe}:yours")
    assert "yours" in message and "mine" in message


def test_a_dry_run_touches_nothing(finished, place, capsys):
    main([*QUICKSTART, "--dry-run", "--run-dir", str(place / "run")])
    out = capsys.readouterr().out
    assert tree(place) == []
    # embedding and head 16·32 each; attention 4·32·32; SwiGLU 3·32·48; three norms of 32
    assert f"parameters   {2 * 16 * 32 + 4 * 32 * 32 + 3 * 32 * 48 + 3 * 32:,}" in out
    assert "{'data': 1, 'fsdp': 1, 'tensor': 1} over 1 device(s)" in out
    config = json.loads(out[: out.index("\n}") + 2])
    assert config == run_dir.read_config(finished)["config"]


def test_a_dry_run_of_ui_genie_tells_both_models(place, capsys):
    main(["ui-genie", "quickstart", "--starts", "3", "--dry-run"])
    out = capsys.readouterr().out
    config = json.loads(out[: out.index("\n}") + 2])
    assert config["starts"] == 3 and len(config["tasks"]) == 16
    assert "30 starts a round, 160 held out" in out  # 10 tasks explored by 3, 16 tested by 10
    assert tree(place) == []


def test_a_dry_run_refuses_what_the_run_would(finished, place, capsys):
    assert "multiple of 3" in refused(
        capsys, *QUICKSTART, "--dry-run", "--trainer.grpo.accumulate", "3"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["srt"],
        ["srt", "quickstart"],
        ["evaluate"],
        ["label"],
        ["generate"],
        ["serve"],
        ["report"],
        ["doctor"],
    ],
)
def test_help_exits_well(arguments, capsys):
    try:
        main([*arguments, "--help"])
    except SystemExit as end:
        assert end.code in (0, None)
    out, err = capsys.readouterr()
    assert "usage" in out.lower() or "selfevolve" in out
    assert err == ""


def test_generate_refuses_characters_that_the_tokenizer_lacks(finished, capsys):
    arm = finished / "arms" / "srt"
    message = refused(capsys, "generate", arm, "--prompt", "1+x=é")
    assert "does not know 'x', 'é'" in message


def test_report_from_run_directories(finished, place, capsys):
    main(["report", str(finished), "-o", str(place / "page.html")])
    assert str(place / "page.html") in capsys.readouterr().out
    page = (place / "page.html").read_text()
    assert "<svg" in page and "srt" in page and "<script" not in page


def test_a_checkpoint_of_another_shape_is_refused(finished, place, capsys):
    """model.json of one policy, weights of another."""
    arm = place / "arm"
    wide = ModelConfig(
        vocab_size=16, d_model=64, n_layers=1, n_heads=4, n_kv_heads=4, head_dim=8, d_ff=48
    )
    checkpoint.save_policy_files(arm, wide, arithmetic.tokenizer(), (15,))
    (arm / checkpoint.LATEST).symlink_to(finished / "arms" / "srt" / checkpoint.LATEST)
    message = refused(capsys, "generate", arm, "--prompt", "1+1=")
    assert "params.embed is (16, 32) there and (16, 64)" in message


@pytest.mark.multiprocess
def test_mistakes_in_a_process_of_their_own():
    """The same through the interpreter: nothing but the box, and the exit code."""
    command = [sys.executable, "-m", "launch.cli"]
    mistakes = [["trane"], ["srt", "quickstart", "--trainer.stepss", "-3"]]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = [
        subprocess.Popen([*command, *m], cwd=ROOT, env=environment, **pipes) for m in mistakes
    ]
    for process, word in zip(running, ("trane", "--trainer.stepss"), strict=True):
        out, err = (text.decode() for text in process.communicate(timeout=120))
        assert process.returncode == 2 and out == ""
        assert err.startswith("╭") and err.count("╭") == 1 and word in err


@pytest.mark.multiprocess
def test_a_reader_that_goes_away_is_no_error():
    """As `selfevolve doctor | head -0`: no traceback, and the exit code of SIGPIPE."""
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "--help"],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.wait(timeout=120) == 141 and process.stderr.read() == b""
