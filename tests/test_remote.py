"""Buckets: what is there and what is not, logs that grow, policies, and refusals. Against a local
emulator, through gcsfs and TensorStore."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import google.auth.exceptions
import numpy as np
import pytest
import requests
from etils import epath

from launch.cli import main
from models.config import ModelConfig
from selfevolve_jax import checkpoint, made_base, metrics, remote, run_dir, state
from selfevolve_jax.dgm.benchmarks import open as benchmarks
from selfevolve_jax.errors import DiskError, UserError
from selfevolve_jax.tasks import arithmetic
from selfevolve_jax.ui_genie import trajectory
from tests import bucket
from tests.test_resume import ROOT, TINY, assert_same_run
from tests.ui_genie import pages
from tests.ui_genie.test_rounds import RECIPE, ran


@pytest.fixture(scope="module")
def front():
    with bucket.serve() as front:
        remote.check(f"gs://{bucket.NAME}/x")
        yield front


@pytest.fixture
def folder(front, request):
    yield epath.Path(f"gs://{bucket.NAME}/{request.node.name}")
    front.read_only, front.lose = False, {}


def test_what_another_writer_adds_is_seen(front, folder):
    """gcsfs would remember the first listing, and the first size, for good."""
    (folder / "a").write_text("1")
    assert [p.name for p in folder.iterdir()] == ["a"]
    bucket.put(front, f"{folder.name}/b/c", b"2")
    bucket.put(front, f"{folder.name}/a", b"longer")
    assert sorted(p.name for p in folder.iterdir()) == ["a", "b"]
    assert (folder / "b" / "c").exists() and (folder / "a").read_text() == "longer"


def test_an_object_grows_by_what_is_new(front, folder):
    log = remote.Appended(folder / "log")
    before, told = front.uploaded, b""
    for i in range(12):
        line = f"line {i} ".encode() + b"x" * 1000 + b"\n"
        log.write(line)
        told += line
        log.flush()
        assert (folder / "log").read_bytes() == told
    log.flush()
    # 12 kB, and a request of 200 bytes to join each; the whole each time would be 79 kB
    assert len(told) < front.uploaded - before < 2 * len(told)
    assert [p.name for p in folder.iterdir()] == ["log"]


@pytest.mark.parametrize("lost", ["/compose", "uploadType"])
def test_a_lost_answer_adds_no_line_twice(front, folder, lost):
    log = remote.Appended(folder / "log")
    for line in (b"one\n", b"two\n"):
        log.write(line)
        log.flush()
    front.lose = {lost: 1}
    log.write(b"three\n")
    log.flush()
    assert front.lose == {lost: 0}
    assert (folder / "log").read_text() == "one\ntwo\nthree\n"


def test_metrics_go_on_from_the_checkpoint_of_a_killed_run(front, folder):
    first = metrics.MetricLog(folder, resume_step=None)
    for step in range(5):
        first.log(step, {"loss": float(step)})
        if step == 2:
            first.flush()  # as before each checkpoint
    lines = metrics.read_metrics(folder / run_dir.METRICS)
    assert [line["step"] for line in lines] == [0, 1, 2]  # 3 and 4 went with the kill
    again = metrics.MetricLog(folder, resume_step=2)
    for step in (3, 4):
        again.log(step, {"loss": 10.0 + step})
    again.close()
    lines = metrics.read_metrics(folder / run_dir.METRICS)
    assert [(x["step"], x["loss"]) for x in lines] == [(0, 0), (1, 1), (2, 2), (3, 13), (4, 14)]


def test_events_of_tensorboard_are_whole_after_several_flushes(front, folder, tmp_path):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    log = metrics.MetricLog(folder, resume_step=None)
    for step in range(3):
        log.log(step, {"loss": step / 2})
        log.flush()
    (file,) = (folder / "tensorboard").iterdir()
    data, steps = file.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        record, sum_ = data[12 : 12 + length], data[12 + length : 16 + length]
        assert masked_crc32c(record) == int.from_bytes(sum_, "little")
        event = Event.FromString(record)
        steps += [(event.step, v.simple_value) for v in event.summary.value]
        data = data[16 + length :]
    assert steps == [(0, 0.0), (1, 0.5), (2, 1.0)]


def test_a_policy_comes_back_as_it_was(front, folder, mesh1):
    """Its tokenizer through gcsfs, its arrays through TensorStore."""
    import jax

    model = ModelConfig(
        vocab_size=16, d_model=32, n_layers=1, n_heads=4, n_kv_heads=4, head_dim=8, d_ff=48
    )
    task = arithmetic.load_task(
        arithmetic.ArithmeticConfig(numbers=(4,), train_rows=16, held_out_rows=8), 0
    )
    params = state.init_params(model, jax.random.key(1), mesh1)
    policy = checkpoint.Policy(params, model, task.tokenizer, task.stop_tokens, 7)
    checkpoint.save_policy(policy, folder)
    found = checkpoint.load_policy(folder, mesh1)
    assert (found.step, found.model, found.stop_tokens) == (7, model, task.stop_tokens)
    assert found.tokenizer.get_vocab() == task.tokenizer.get_vocab()
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    names = remote._files(folder)
    assert "policy/model.json" in names and any(n.startswith("checkpoints/7/") for n in names)
    with pytest.raises(UserError, match="best does not exist"):
        checkpoint.find_policy(folder / "best")


def test_a_run_in_use_is_refused_and_a_new_one_made(front, folder):
    run_dir.create(folder, {"a": 1}, False)
    assert run_dir.read_config(folder)["config"] == {"a": 1}
    with pytest.raises(UserError, match="already exists"):
        run_dir.create(folder, {"a": 1}, False)
    with pytest.raises(UserError, match="a: 1 -> 2"):
        run_dir.create(folder, {"a": 2}, True)
    run_dir.create(folder, {"a": 1}, True)


def test_screenshots_are_kept_where_no_folder_can_be_made(front, folder):
    name = trajectory.keep(b"png")
    assert trajectory.write_screenshots(folder, {name: b"png"}) == {name}
    assert trajectory.write_screenshots(folder, {}) == {name}


def test_a_bucket_that_refuses_writes(front, folder):
    log = metrics.MetricLog(folder, resume_step=None)
    log.log(0, {"loss": 1.0})
    log.flush()
    front.read_only = True
    with pytest.raises(DiskError, match=r"cannot write gs://.*no storage.objects.create access"):
        run_dir.create(folder / "other", {}, False)
    with pytest.raises(DiskError, match=r"cannot write gs://.*metrics\.jsonl"):
        log.log(1, {"loss": 1.0})
        log.flush()
    assert [x["step"] for x in metrics.read_metrics(folder / run_dir.METRICS)] == [0]


@pytest.mark.parametrize("when", ["before the first byte", "when only the arrays are left"])
def test_a_checkpoint_that_the_bucket_refuses(front, folder, when):
    with checkpoint.disk_errors(folder):
        saved = checkpoint.open_checkpoints(folder, 2)
        saved.save_checkpointables(1, {"params": {"w": np.ones(4)}})
    front.read_only = "/ocdbt.process_0/" if "arrays" in when else True
    with pytest.raises(DiskError, match=r"saving a checkpoint to gs://.* failed"):  # noqa: SIM117
        with checkpoint.disk_errors(folder):
            saved.save_checkpointables(2, {"params": {"w": np.ones(4)}})
    front.read_only = False
    with contextlib.suppress(Exception):
        saved.close()
    again = checkpoint.open_checkpoints(folder, 2)
    assert [each.step for each in again.checkpoints] == [1]
    checkpoint.close(again)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("gs://absent/x", "there is no such bucket"),
        ("gs://", "gs://BUCKET/FOLDER"),
        ("s3://bucket/x", "gs://BUCKET/FOLDER"),
    ],
)
def test_paths_that_cannot_be(front, path, words):
    for use in (run_dir.read_config, checkpoint.find_policy):
        with pytest.raises(UserError, match=words):
            use(path)
    with pytest.raises(UserError, match=words):
        run_dir.check(path, {}, False)


def test_a_server_that_is_not_there(monkeypatch):
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(UserError, match=r"gs://alone: .* cannot be reached \(.*refused"):
            remote.check("gs://alone/x")


@pytest.fixture
def closed(monkeypatch):
    """A server that lists for nobody; says which tokens it was shown."""
    shown = []

    class Closed(bucket.BaseHTTPRequestHandler):
        def do_GET(self):
            shown.append(self.headers.get("Authorization"))
            body = json.dumps({"error": {"message": "x@y may not list"}}).encode()
            self.send_response(403 if shown[-1] else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = bucket.ThreadingHTTPServer(("127.0.0.1", 0), Closed)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_address[1]}")
    yield shown
    server.shutdown()
    server.server_close()


def test_no_credentials(closed, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    with pytest.raises(UserError, match=r"needs credentials.*gcloud auth application-default"):
        remote.check("gs://private/x")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(UserError, match=r"none\.json was not found"):
        remote.check("gs://private/x")
    assert closed == [None, None]


def test_credentials_that_may_not(closed, monkeypatch):
    from google.oauth2.credentials import Credentials

    monkeypatch.setattr("google.auth.default", lambda scopes: (Credentials("token"), None))
    with pytest.raises(UserError, match=r"403.*x@y may not list.*Storage Object User"):
        remote.check("gs://private/x")
    assert closed == [None, "Bearer token"]
    expired = Credentials(None)  # nothing to refresh it with
    monkeypatch.setattr("google.auth.default", lambda scopes: (expired, None))
    with pytest.raises(UserError, match="credentials are refused"):
        remote.check("gs://private/x")


def test_a_cache_in_a_bucket_is_refused(monkeypatch):
    monkeypatch.setenv("SELFEVOLVE_CACHE", "gs://bucket/cache")
    with pytest.raises(UserError, match="SELFEVOLVE_CACHE=gs://bucket/cache"):
        made_base.cache_folder()
    with pytest.raises(UserError, match="SELFEVOLVE_CACHE=gs://bucket/cache"):
        benchmarks.cache_folder()


def test_only_the_clients_own_errors_count_as_refusals():
    assert remote.is_refusal(requests.ConnectionError())
    assert remote.is_refusal(google.auth.exceptions.RefreshError())
    assert not remote.is_refusal(TypeError()) and not remote.is_refusal(KeyError())


@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_commands_on_a_run_that_was_killed_and_resumed(front, folder, tmp_path, capsys):
    """It ends bit for bit as one on the local disk that nobody disturbed. Then commands read it."""
    env = bucket.environment(SELFEVOLVE_CACHE=str(tmp_path / "cache"))

    def start(place, *options):
        command = [sys.executable, "-m", "launch.cli", "srt", "quickstart", *TINY.split()]
        command += ["--run-dir", str(place), *options]
        return subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)

    reference = epath.Path(tmp_path / "reference")
    with start(reference) as undisturbed:
        _, said = undisturbed.communicate(timeout=600)
    assert undisturbed.returncode == 0, said
    arm = folder / "arms" / "srt"
    with start(folder) as killed:
        # the first of that step's files, and not the one that says that it is whole
        while not (arm / "checkpoints" / "4").exists():
            assert killed.poll() is None, killed.communicate()[1]
            time.sleep(0.1)
        killed.kill()
    assert not (folder / run_dir.SUMMARY).exists()
    with start(folder, "--resume") as resumed:
        _, said = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, said
    assert_same_run(arm, reference / "arms" / "srt")
    assert run_dir.read_summary(folder)["arms"] == run_dir.read_summary(reference)["arms"]
    assert "<html" in (folder / run_dir.REPORT).read_text()

    main(["report", str(folder), "-o", str(tmp_path / "page.html")])
    assert "srt" in (tmp_path / "page.html").read_text()
    main(["generate", str(arm / "best"), "--prompt", "1+2+3+4="])
    text = capsys.readouterr().out.splitlines()[-1]
    main(["convert", str(arm / "best"), str(tmp_path / "hf")])
    main(["convert", str(tmp_path / "hf"), str(folder / "again")])
    capsys.readouterr()
    main(["generate", str(folder / "again"), "--prompt", "1+2+3+4="])
    assert capsys.readouterr().out.splitlines()[-1] == text
    with pytest.raises(SystemExit) as stopped:
        main(["generate", str(folder), "--prompt", "1="])
    assert stopped.value.code == 2 and "Its arms are" in capsys.readouterr().err


@pytest.mark.slow
def test_ui_genie_and_its_resume(front, folder, home):
    """On pages that stand for a browser's."""
    recipe = replace(RECIPE, arms=("co_evolution",), rounds=1)
    summary = ran(folder, pages.Pages(), recipe)
    assert run_dir.read_summary(folder) == run_dir.jsonable(summary)
    assert (folder / run_dir.REPORT).exists()
    assert ran(folder, pages.Pages(), recipe, resume=True)["arms"] == summary["arms"]
