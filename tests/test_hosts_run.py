"""A run on two real processes of two devices each, through the real command: it gives the numbers of
one process with four devices, survives what kills both or one of them, and goes on with fewer processes
or on another mesh.

On CPUs JAX sums over devices in one order within a process, and in another (gloo's) between processes.
Where the numbers must be the very same, the single process uses gloo too: `--hosts.processes 1` with a
coordinator. The other comparisons name their tolerance.
"""

import json
import signal
import socket
import time

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from selfevolve_jax import run_dir
from tests.test_resume import STEPS, lines_in, start_srt, timeless

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
# What the order of a sum may change, after twelve steps: on two processes 1.2e-7 is seen.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
WAIT_S = 1200  # for a machine that does much else


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Command:
    """Starts the real command. A cache of bases for each, and one of compiled programs for all."""

    def __init__(self, caches):
        self.caches = caches

    def start(self, run, devices, *options, bases="bases", recipe="quickstart"):
        flags = (
            f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
        )
        caches = self.caches / bases, self.caches / "jax"
        return start_srt(run, options, recipe, *caches, XLA_FLAGS=flags)

    def pair(self, run, *options, **named):
        port = free_port()
        return [
            self.start(
                run, 2, *hosts_of(port, 2, i), "--hosts.lost-after-s", "30", *options, **named
            )
            for i in range(2)
        ]

    def alone(self, run, *options, **named):
        """Four devices in one process, with the collectives of several."""
        return self.start(run, 4, *hosts_of(free_port(), 1, 0), *options, **named)


def hosts_of(port, processes, index):
    given = ("coordinator", f"127.0.0.1:{port}"), ("processes", processes), ("index", index)
    return [word for name, value in given for word in (f"--hosts.{name}", str(value))]


def ended(*processes):
    """[(exit code, stdout, stderr)]; none may hang, and none may end in a Python traceback."""
    said = [process.communicate(timeout=WAIT_S) for process in processes]
    assert all("Traceback" not in err for _, err in said), said
    return [(p.returncode, out, err) for p, (out, err) in zip(processes, said, strict=True)]


def finished(*processes):
    found = ended(*processes)
    assert [code for code, _, _ in found] == [0] * len(processes), found
    return found


def after_step(run, step, processes):
    """Waits until the log has this step."""
    log = run / "arms" / "srt" / run_dir.METRICS
    while lines_in(log) <= step and all(p.poll() is None for p in processes):
        time.sleep(0.01)
    assert all(p.poll() is None for p in processes), [p.communicate() for p in processes]


def arrays(step_folder):
    """Every array of a checkpoint by part and path, whatever wrote it, on the first device here."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    stored, found = ocp.checkpointables_metadata(step_folder).metadata, {}
    for part in ("params", "train"):
        wanted = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), stored[part]
        )
        tree = ocp.load_checkpointables(step_folder, {part: wanted})[part]
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        found |= {part + jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return found


def assert_matches(run, reference, close=None):
    """The same samples, log, final and best checkpoint: to the bit, or as `close` says."""
    arm, wanted = run / "arms" / "srt", reference / "arms" / "srt"
    for kind in ("checkpoints", "best"):
        steps = sorted(p.name for p in (wanted / kind).iterdir())
        assert sorted(p.name for p in (arm / kind).iterdir()) == steps
        for step in steps:
            mine, theirs = arrays(arm / kind / step), arrays(wanted / kind / step)
            assert mine.keys() == theirs.keys() and sum("opt_state" in k for k in mine) > 20
            for name, value in mine.items():
                if close is None:
                    np.testing.assert_array_equal(value, theirs[name], err_msg=name)
                else:
                    np.testing.assert_allclose(value, theirs[name], err_msg=name, **close)
    mine, theirs = timeless(arm, STEPS), timeless(wanted, STEPS)
    if close is None:
        assert mine == theirs
        summaries = [run_dir.read_summary(r)["arms"] for r in (run, reference)]
        assert summaries[0] == summaries[1]
    for one, other in zip(mine, theirs, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if name != "policy/sampler_gap":  # itself the difference of two roundings
                np.testing.assert_allclose(
                    np.float64(value), np.float64(other[name]), err_msg=name, **(close or CLOSE)
                )
    names = [path.name for path in run_dir.sample_steps(wanted).values()]
    assert [path.name for path in run_dir.sample_steps(arm).values()] == names
    for name in names:
        assert (arm / "samples" / name).read_bytes() == (wanted / "samples" / name).read_bytes()


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    return Command(tmp_path_factory.mktemp("caches"))


@pytest.fixture(scope="module")
def reference(command, tmp_path_factory):
    """One process with four devices, undisturbed."""
    run = tmp_path_factory.mktemp("reference") / "run"
    finished(command.alone(run))
    return run


def unboxed(err):
    """A message in one line: where its box breaks it depends on the paths in it."""
    return " ".join(err.replace("│", " ").split())


def test_two_processes_give_the_numbers_of_one(command, reference, tmp_path):
    """Also of the base policy, which each makes in a cache of its own. One of them prints."""
    (_, out, _), (_, other, _) = finished(*command.pair(tmp_path / "run", bases="others"))
    assert_matches(tmp_path / "run", reference)
    assert out.count("held-out accuracy") == 1 and out.count(f"srt {STEPS}/{STEPS}") == 1
    lines = [line for line in other.splitlines() if not line.startswith("[Gloo]")]
    assert lines == []
    assert (tmp_path / "run" / run_dir.REPORT).exists()
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_both_killed_and_resumed_on_one_process(command, reference, tmp_path):
    run = tmp_path / "run"
    processes = command.pair(run)
    after_step(run, 5, processes)
    for process in processes:
        process.kill()
    assert [code for code, _, _ in ended(*processes)] == [-signal.SIGKILL] * 2
    _, out, _ = finished(command.alone(run, "--resume"))[0]
    assert "goes on from the checkpoint of step" in out
    assert_matches(run, reference)


@pytest.mark.parametrize("index", [0, 1])
def test_one_killed_ends_the_other_and_both_go_on(command, reference, tmp_path, index):
    run = tmp_path / "run"
    processes = command.pair(run)
    after_step(run, 5, processes)
    processes[index].kill()
    codes = [-signal.SIGKILL, -signal.SIGKILL]
    codes[1 - index] = 75
    found = ended(*processes)
    assert [code for code, _, _ in found] == codes, found
    words = " ".join(found[1 - index][2].replace("│", " ").split())
    assert f"process {1 - index} of 2: process {index}" in words and "is lost" in words
    assert "--resume" in words
    finished(*command.pair(run, "--resume"))
    assert_matches(run, reference)


def test_a_signal_to_one_stops_both_at_the_same_step(command, reference, tmp_path):
    """Resumed without gloo, as a laptop would: the sums have another order."""
    run = tmp_path / "run"
    processes = command.pair(run)
    after_step(run, 3, processes)
    processes[1].send_signal(signal.SIGTERM)
    (code, _, err), (other_code, _, other) = ended(*processes)
    assert (code, other_code) == (143, 143)
    assert "stopped by a signal after step" in err and err.count("╭") == 1
    assert "╭" not in other
    finished(command.start(run, 4, "--resume"))
    assert_matches(run, reference, CLOSE)


def test_a_mistake_is_told_once_and_a_folder_in_use_is_refused_by_both(command, reference):
    before = json.dumps(run_dir.read_summary(reference))
    (code, _, err), (other_code, _, other) = ended(*command.pair(reference))
    assert (code, other_code) == (2, 2)
    assert "already exists and is not empty" in unboxed(err) and err.count("╭") == 1
    assert "╭" not in other
    assert json.dumps(run_dir.read_summary(reference)) == before


BROKEN = """
import sys
from configs.srt import quickstart as _quickstart
from selfevolve_jax import errors, step_draw

_generate, _calls = step_draw.generate, []

def _failing(*given, **named):
    _calls.append(1)
    if len(_calls) == 3:
        raise {error}
    return _generate(*given, **named)

if sys.argv[sys.argv.index("--hosts.index") + 1] == "1":
    step_draw.generate = _failing

def broken():
    return _quickstart()
"""


@pytest.mark.parametrize(
    ("error", "code"),
    [("errors.UserError('the wheel came off')", 2), ("ValueError('the wheel came off')", 1)],
)
def test_what_fails_on_one_process_ends_the_other(command, tmp_path, error, code):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(BROKEN.format(error=error))
    processes = command.pair(tmp_path / "run", recipe=f"{recipe}:broken")
    said = [process.communicate(timeout=WAIT_S) for process in processes]
    assert [process.returncode for process in processes] == [code, code], said
    (_, err), (_, other) = said
    words = unboxed(err)
    assert "process 0 of 2: process 1 (" in words and "ended the run:" in words
    assert "the wheel came off" in words and "the wheel came off" in other
    assert ("Traceback" in other) == (code == 1) and "Traceback" not in err


def test_another_mesh_at_each_resume(command, tmp_path):
    """Eight devices, then four, then one; the loss curve is that of eight throughout."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    eight = ("--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2")
    finished(command.start(whole, 8, *eight))
    meshes = [(8, eight), (4, ("--mesh.data", "1", "--mesh.fsdp", "4")), (1, ())]
    resume = ()
    for (devices, mesh), until in zip(meshes, (3, 7, None), strict=True):
        process = command.start(run, devices, *mesh, *resume)
        resume = ("--resume",)
        if until is None:
            finished(process)
            break
        after_step(run, until, [process])
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0][0] == 143
    assert_matches(run, whole, CLOSE)
