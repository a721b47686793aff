"""`selfevolve compile`: what it prints, refuses and searches. Tests that compile for TPUs need libtpu
(the extra `tpu`) and say so where they are skipped; those of GPUs and of mistakes need none."""

import importlib.util
import json
import sys
from dataclasses import replace
from functools import partial

import pytest

from configs import mm_upt, srt, ui_genie
from launch import cli, compile
from selfevolve_jax import aot, sharding
from selfevolve_jax.chips import CHIPS, link_rate, parse_topology
from selfevolve_jax.errors import UserError
from selfevolve_jax.pretrained.published import SIZES

UI_GENIE = f"{ui_genie.__file__}:quickstart"
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for TPUs needs libtpu: uv sync --extra tpu",
)


def run(capsys, *arguments):
    """(exit code, what was printed, what was complained of, in one line)."""
    try:
        cli.main(["compile", *arguments])
        code = 0
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    return code, out, " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["compile needs a recipe"]),
        (["nope", "--topology", "h100:8"], ["'nope' is unknown", "srt: quickstart", "mm-upt:"]),
        (["quickstart", "--topology", "h100:8"], ["srt/quickstart or mm-upt/quickstart"]),
        (["srt/quickstart"], ["needs --topology", "v5e:16x16"]),
        (["srt/quickstart", "--topology", "h200"], ["h200 needs a number of GPUs", "h100:8"]),
        (["srt/quickstart", "--topology", "v5p:4x4"], ["v5p needs 3 sides"]),
        (["srt/quickstart", "--topology", "v9:4x4"], ["'v9' is unknown", "v5e", "b200"]),
        (["srt/quickstart", "--topology", "v5e:0x4"], ["v5e needs 2 sides"]),
        (
            ["qwen2-5-math-7b-dapo", "--topology", "h100:8", "--mesh.fsdp", "3"],
            ["mesh.fsdp=3", "8 device"],
        ),
        (
            [
                "qwen2-5-math-7b-dapo",
                "--topology",
                "h100:8",
                "--mesh.fsdp",
                "1",
                "--mesh.tensor",
                "8",
            ],
            ["'heads' has size 28", "tensor=8"],
        ),
        (
            ["qwen2-5-math-7b-dapo", "--topology", "h100:48", "--mesh.fsdp", "48"],
            ["512 rows do not divide", "48"],
        ),
        (["mm-upt/quickstart", "--topology", "h100:1"], ["sets no limit", "--prompt-tokens"]),
        ([UI_GENIE, "--topology", "h100:1"], ["a UIGenieRecipe has no one step"]),
        (["srt/quickstart", "--topology", "h100:1", "--only", "update"], ["GPUs are estimated"]),
    ],
)
def test_a_mistake_ends_in_one_message(capsys, arguments, said):
    code, _, err = run(capsys, *arguments)
    assert code == 2 and "Traceback" not in err
    assert all(part in err for part in said), err


def test_without_libtpu_the_install_is_told(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)  # importing it now fails
    code, _, err = run(capsys, "srt/quickstart", "--topology", "v5e:2x2")
    assert code == 2
    assert "libtpu, which is not installed" in err and "uv sync --extra tpu" in err


def test_gpus_are_estimated_without_compiling(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(aot, "compile_program", None)
    file = tmp_path / "plans.jsonl"
    code, out, _ = run(
        capsys, "qwen2-5-math-7b-dapo", "--topology", "h100:64", "--json", str(file),
        "--trainer.grpo.accumulate", "8",
    )  # fmt: skip
    assert code == 0
    assert "7,615,616,512" in out and "MFU at most" in out and "decode" in out
    told = json.loads(file.read_text())
    # 20 bytes a parameter: two copies of float32, two moments, a gradient. Matrices are split over 64
    # GPUs; norms and biases are on each, as are three counts of steps.
    held = told["held"]
    total = held["parameters"] + held["optimiser"] + held["gradients"]
    small = 28 * (2 * 3584 + (28 + 2 * 4) * 128) + 3584
    assert total == 20 * (7_615_616_512 - small) // 64 + 20 * small + 12
    assert told["programs"]["update"]["links"] > 0 and "needs" not in told["programs"]["update"]


def test_what_does_not_fit_ends_in_what_would_help(capsys):
    code, _, err = run(capsys, "qwen2-5-math-7b-dapo", "--topology", "a100:1")
    assert code == 2
    assert "update does not fit: needs" in err and "of 74.51 GiB" in err
    assert "--trainer.grpo.accumulate 2 (up to 512)" in err and "more chips" in err


def test_a_remedy_is_one_that_is_left():
    """Nothing is proposed that the step has already, or that the mesh or the model does not take."""
    mesh = sharding.abstract_mesh(sharding.MeshConfig(1, 2, 4), 8)
    recipe = srt.qwen2_5_math_7b_dapo()
    model = replace(SIZES["Qwen/Qwen2.5-Math-7B"], param_dtype="float32", remat="full")
    trainer = replace(recipe.trainer, grpo=replace(recipe.trainer.grpo, accumulate=256))
    step = aot.Step(model, trainer, mesh, 1024)
    told = " ".join(compile.remedies(step, "update"))
    assert "accumulate" not in told and "remat" not in told and "slots" not in told
    assert "mesh" not in told  # 4 kv heads are split 4 ways
    assert "lora" in told
    assert "--trainer.rollout.slots 256" in compile.remedies(step, "decode")
    loose = replace(step, model=replace(model, remat="none"))
    assert "--policy.remat dots, then full" in compile.remedies(loose, "update")


@pytest.mark.parametrize("first", range(6))
def test_the_first_that_holds(first):
    asked = []

    def holds(value):
        asked.append(value)
        return value >= 10 * first

    values = [0, 10, 20, 30, 40]
    assert compile.first_that(values, holds) == (10 * first if first < 5 else None)
    assert len(asked) <= 3


def test_search_takes_the_cheapest_remat_then_the_largest_piece_then_the_most_slots():
    mesh = sharding.abstract_mesh(sharding.MeshConfig(1, 8, 1), 8)
    recipe = srt.qwen2_5_math_7b_dapo()
    step = aot.Step(SIZES["Qwen/Qwen2.5-Math-7B"], recipe.trainer, mesh, 1024)

    def fits(step, program):
        if program == "update":  # without remat nothing does; with dots a piece of 8 rows a device
            return step.model.remat != "none" and step.trainer.grpo.accumulate >= 8
        return step.slots <= 200

    found = compile.search(step, fits)
    assert (found.model.remat, found.trainer.grpo.accumulate, found.slots) == ("dots", 8, 128)
    assert compile.search(step, lambda step, program: False) is step


def test_a_topology_is_read():
    assert parse_topology("v5e:16x16") == (CHIPS["v5e"], (16, 16))
    assert parse_topology("v5p:4x4x8") == (CHIPS["v5p"], (4, 4, 8))
    assert parse_topology("b200:8") == (CHIPS["b200"], (8,))


def test_gpus_of_several_nodes_share_their_network():
    h100 = CHIPS["h100"]
    assert link_rate(h100, 8) == 450e9 > link_rate(h100, 16) == 50e9
    assert link_rate(CHIPS["v5e"], 256) == CHIPS["v5e"].links


def test_the_largest_picture_of_the_published_recipe():
    """1,204,224 pixels: a square of 39 x 39 units of 28 pixels, in 10 x 10 windows, a bucket of 128."""
    options = partial(compile.Compile, topology="v5e:16x16")
    model = SIZES["Qwen/Qwen2.5-VL-7B-Instruct"]
    recipe = mm_upt.qwen2_5_vl_7b_mmr1()
    assert compile.longest(options(recipe), model) == (2048, 128 * 64)
    with pytest.raises(UserError, match=r"1,521 tokens"):
        compile.longest(options(recipe, prompt_tokens=1521), model)


@needs_libtpu
def test_a_tiny_step_is_compiled_for_tpus(capsys, tmp_path):
    file = tmp_path / "plans.jsonl"
    code, out, err = run(
        capsys, "srt/quickstart", "--topology", "v5e:2x2", "--only", "admit", "update", "--json",
        str(file), "--mesh.fsdp", "2", "--policy.model.dtype", "bfloat16",
    )  # fmt: skip
    assert code == 0, err
    assert "all-reduce" in out and "of 15.75 GiB" in out
    told = json.loads(file.read_text())["programs"]
    assert told["update"]["needs"] > 0 and "needs" not in told["decode"]


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "mesh", "said"),
    [
        ("v5e:3x5", [], "none that libtpu knows"),
        ("v6e:4x4", ["--mesh.fsdp", "2", "--mesh.tensor", "8"], "a product of whole sides"),
    ],
)
def test_a_torus_that_there_is_not(capsys, topology, mesh, said):
    code, _, err = run(capsys, "srt/quickstart", "--topology", topology, *mesh)
    assert code == 2 and said in err
