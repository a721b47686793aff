"""`selfevolve convert`: both ways, the line it prints, and that DST is whole or absent."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from launch import convert as module
from launch.cli import main
from selfevolve_jax import checkpoint
from selfevolve_jax.pretrained import source
from tests.pretrained import folders


@pytest.fixture
def hub(tmp_path):
    return folders.family(tmp_path / "hub", "qwen2.5-vl", "float32")[0]


def test_there_and_back(hub, tmp_path, mesh1, capsys):
    policy, again = tmp_path / "deep" / "policy", tmp_path / "again"
    main(["convert", str(hub), str(policy), "--mesh.fsdp", "4", "--mesh.data", "2"])
    (line,) = capsys.readouterr().out.splitlines()
    total = sum(x.size for x in load_file(hub / "model.safetensors").values())
    assert line == (f"{hub}: {total:,} parameters, written as a policy in float32 to {policy}")
    loaded = checkpoint.load_policy(policy, mesh1)
    assert loaded.images is not None and loaded.stop_tokens == (1, 2)
    main(["convert", str(policy), str(again), "--dtype", "bfloat16"])
    assert capsys.readouterr().out.splitlines() == [
        f"{policy}: {total:,} parameters, written as Hugging Face safetensors in bfloat16 to {again}"
    ]
    before, after = (load_file(f / "model.safetensors") for f in (hub, again))
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(array.astype("bfloat16"), after[name])
    assert json.loads((again / "config.json").read_text())["torch_dtype"] == "bfloat16"
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["again", "deep", "hub"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["policy"]


def test_dtype_on_the_way_in(hub, tmp_path, mesh1):
    main(["convert", str(hub), str(tmp_path / "p"), "--dtype", "bfloat16"])
    model = checkpoint.load_policy(tmp_path / "p", mesh1).model
    assert (model.param_dtype, model.dtype) == ("bfloat16", "bfloat16")


def said(arguments, capsys):
    """What is printed, without blanks, as the box breaks words too; after exit code 2 and without a
    traceback."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return re.sub(r"[\s│╭╮╰╯─]+", "", text)


def test_mistakes_are_one_message_and_leave_nothing(hub, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    assert "fullexists." in said(["convert", str(hub), str(tmp_path / "full")], capsys)
    assert "isnohubid" in said(["convert", str(tmp_path / "no"), str(tmp_path / "x")], capsys)
    assert "dtype" in said(["convert", str(hub), str(tmp_path / "x"), "--dtype", "int8"], capsys)
    assert "mesh.fsdp=3" in said(
        ["convert", str(hub), str(tmp_path / "x"), "--mesh.fsdp", "3"], capsys
    )
    config = json.loads((hub / "config.json").read_text())
    (hub / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    assert "hidden_act'gelu'" in said(["convert", str(hub), str(tmp_path / "x")], capsys)
    (hub / "config.json").write_text(json.dumps(config))
    data = (hub / "model.safetensors").read_bytes()
    (hub / "model.safetensors").write_bytes(data[:-100])
    assert "cutshort" in said(["convert", str(hub), str(tmp_path / "x")], capsys)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "hub"]


@pytest.mark.parametrize("broken", ["save_policy_files", "close"])
def test_an_interrupted_conversion_leaves_nothing(hub, tmp_path, monkeypatch, broken):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, broken, interrupt)
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(hub), str(tmp_path / "out")])
    assert stopped.value.code == 130
    assert [p.name for p in tmp_path.iterdir()] == ["hub"]


def test_a_remote_policy_has_its_checkpoint_last(hub, tmp_path, monkeypatch):
    """A bucket cannot rename; a local folder stands for it."""
    order = []
    real = checkpoint.save_policy_files
    monkeypatch.setattr(module.run_dir, "is_remote", lambda path: True)
    monkeypatch.setattr(module.run_dir, "absolute", lambda path: module.run_dir.epath.Path(path))
    monkeypatch.setattr(source, "is_policy", lambda path: False)

    def files(folder, *rest):
        order.append([p.name for p in (tmp_path / "out").glob("*")])
        return real(folder, *rest)

    monkeypatch.setattr(checkpoint, "save_policy_files", files)
    main(["convert", str(hub), str(tmp_path / "out")])
    assert order == [[]] and (tmp_path / "out" / "checkpoints" / "0").is_dir()


def test_export_is_not_begun_when_the_policy_cannot_be_read(hub, tmp_path, monkeypatch):
    def never(*arguments):
        raise AssertionError("export")

    main(["convert", str(hub), str(tmp_path / "policy")])
    monkeypatch.setattr(module, "export", never)
    (tmp_path / "policy" / "policy" / "model.json").write_text("{")
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(tmp_path / "policy"), str(tmp_path / "out")])
    assert stopped.value.code == 2 and not (tmp_path / "out").exists()
