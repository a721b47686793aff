"""`selfevolve launch tpu-vm run` against a gcloud that preempts: what is mended, and what is not."""

import json
import tarfile

import pytest

from launch.cli import main
from launch.cluster import tpu_vm
from launch.cluster.tpu_vm import verdict
from tests.launch.clusters import Cluster

RUN = [
    *("launch", "tpu-vm", "run", "mine", "--zone", "us-west4-a", "--topology", "v5e:4x4", "--spot"),
    *("--poll-seconds", "0.001"),
]
JOB = ["--", "srt", "quickstart", "--run-dir", "gs://bucket/run"]
GOES = ["running"] * 4
BEGIN = ["create", "stop", "copy", "setup", "start"]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tpu_vm, "pack", lambda checkout, archive: archive.write_bytes(b"packed"))
    return Cluster(tmp_path / "bin", monkeypatch)


def fails(capfd, *words) -> str:
    with pytest.raises(SystemExit) as caught:
        main([*RUN, *words, *JOB])
    assert caught.value.code == 1
    return " ".join(line.strip("│ ") for line in capfd.readouterr().err.splitlines())


def test_a_job_that_ends_well_costs_no_more(cluster, capfd):
    cluster.cloud([GOES, GOES, ["running"] * 3 + ["exit 0"], ["exit 0"] * 4])
    main(RUN + JOB)
    assert cluster.deeds() == [*BEGIN, "last", "delete"]
    assert "done; the run is in gs://bucket/run" in capfd.readouterr().out


def test_a_preempted_job_is_begun_again_with_the_same_words(cluster, capfd):
    """READY, PREEMPTED, and after a new request READY again; twice."""
    cluster.cloud([GOES, "PREEMPTED"], ["PREEMPTED"], [GOES, ["exit 0"] * 4])
    main(RUN + JOB)
    assert cluster.deeds() == [*BEGIN, "delete", *BEGIN, "delete", *BEGIN, "last", "delete"]
    starts = [a for _, given, _, _ in cluster.calls() for a in given if "worker.sh start" in a]
    command = "srt quickstart --run-dir gs://bucket/run --resume"
    assert starts == [f"--command=selfevolve/launch/cluster/worker.sh start {command}"] * 3
    assert capfd.readouterr().out.count("the job resumes") == 2


def test_machines_that_are_taken_before_they_come_are_asked_for_again(cluster):
    cluster.cloud(["never"], [["exit 0"] * 4], arrivals=["SUSPENDED"])
    main(RUN + JOB)
    assert cluster.deeds() == ["create", "delete", *BEGIN, "last", "delete"]


def test_a_request_that_gcloud_fails_ends_it(cluster, capfd):
    cluster.cloud(["never"], arrivals=["FAILED"])
    assert "request for machines failed" in fails(capfd)
    assert cluster.deeds() == ["create"]


def test_a_job_that_fails_of_itself_is_not_started_again(cluster, capfd):
    cluster.cloud([GOES, ["exit 1"] * 4])
    said = fails(capfd)
    assert "failed by itself" in said and "gs://bucket/run" in said
    assert cluster.deeds() == [*BEGIN, "last", "delete"]


def test_workers_that_fail_before_the_preemption_shows_are_not_its_own_failure(cluster):
    """A peer that lost another dies of an error, a moment before gcloud says PREEMPTED."""
    cluster.cloud([["exit 1"] * 4, "PREEMPTED"], [["exit 0"] * 4])
    main(RUN + JOB)
    assert cluster.deeds() == [*BEGIN, "delete", *BEGIN, "last", "delete"]


@pytest.mark.parametrize("outside", ["exit 143", "lost"])
def test_a_job_that_was_stopped_where_it_is_starts_there_again(cluster, outside):
    """By the SIGTERM of a maintenance, or by a reboot; its peers fail of it."""
    cluster.cloud(
        [GOES, ["exit 1", outside, "exit 1", "running"], [outside] * 4, GOES, ["exit 0"] * 4]
    )
    main(RUN + JOB)
    assert cluster.deeds() == [*BEGIN, *BEGIN[1:], "last", "delete"]


def test_a_job_that_is_stopped_for_ever_is_not_mended_for_ever(cluster, capfd):
    cluster.cloud([["lost"] * 4])
    assert "restarted 2 times" in fails(capfd, "--max-restarts", "2")
    assert cluster.deeds() == [*BEGIN, *BEGIN[1:] * 2]


def test_machines_that_do_not_answer_are_replaced(cluster):
    cluster.cloud([["running"]], [["exit 0"] * 4])  # of four workers one answers
    main(RUN + JOB)
    assert cluster.deeds() == [*BEGIN, "delete", *BEGIN, "last", "delete"]


def test_a_job_that_cannot_be_started_is_given_up(cluster, capfd):
    cluster.cloud([GOES], refuses=9)
    said = fails(capfd)
    assert "could not be started" in said and "delete mine" in said
    assert cluster.deeds() == [*BEGIN, *BEGIN[1:] * 2]


def test_a_start_that_fails_once_is_tried_again(cluster):
    cluster.cloud([GOES, ["exit 0"] * 4], refuses=1)
    main(RUN + JOB)
    assert cluster.deeds() == [*BEGIN, *BEGIN[1:], "last", "delete"]


def test_a_gcloud_that_cannot_log_in_ends_it_at_once(cluster, capfd):
    cluster.program("gcloud", "print('ERROR: no active account', file=sys.stderr); sys.exit(1)")
    said = fails(capfd)
    assert "cannot say what is there" in said and cluster.deeds() == []


def test_a_gcloud_that_fails_now_and_then_is_asked_again(cluster, capfd):
    """At every third question about the machines."""
    cluster.cloud([GOES, GOES, GOES, ["exit 0"] * 4])
    program = cluster.folder / "gcloud"
    trouble = (
        "n = len((here / 'calls').read_text().splitlines())\n"
        "if 'describe' in given and n % 3 == 0: print('ERROR: 503', file=sys.stderr); sys.exit(1)\n"
    )
    program.write_text(program.read_text().replace("\ncloud = ", f"\n{trouble}\ncloud = ", 1))
    main(RUN + JOB)
    assert cluster.deeds() == [*BEGIN, "last", "delete"] and "ERROR: 503" in capfd.readouterr().out


def test_a_watcher_that_is_stopped_leaves_the_job_and_says_so(cluster, capfd, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    cluster.cloud([GOES])
    monkeypatch.setattr(tpu_vm, "watch", interrupted)
    with pytest.raises(SystemExit) as caught:
        main(RUN + JOB)
    assert caught.value.code == 130 and cluster.deeds() == BEGIN
    out = capfd.readouterr().out
    assert "The job goes on, and so does its bill" in out
    assert "queued-resources delete mine --zone=us-west4-a --force --quiet" in out


def test_a_watcher_that_comes_back_finds_its_job(cluster, capfd):
    cluster.cloud([GOES, GOES, ["exit 0"] * 4])
    story = json.loads((cluster.folder / "cloud.json").read_text())
    story |= {"queue": "ACTIVE", "node": "READY", "life": 0, "started": True}
    (cluster.folder / "cloud.json").write_text(json.dumps(story))
    main([*RUN, "--keep", *JOB])
    assert cluster.deeds() == ["last"]
    assert "is running there already" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("answers", "hosts", "means"),
    [
        (["running", "running"], 2, "running"),
        (["running", "exit 0"], 2, "running"),
        (["exit 0", "exit 0"], 2, "done"),
        (["running"], 2, "unheard"),
        ([], 1, "unheard"),
        (["exit 2", "exit 2"], 2, "failed"),
        (["exit 1", "running"], 2, "failed"),
        (["exit 137", "exit 0"], 2, "failed"),
        (["exit 143", "exit 143"], 2, "stopped"),
        (["exit 1", "exit 143"], 2, "stopped"),
        (["exit 75", "exit 137"], 2, "stopped"),
        (["lost", "running"], 2, "stopped"),
        (["none", "running"], 2, "stopped"),
    ],
)
def test_what_the_answers_of_all_workers_mean(answers, hosts, means):
    assert verdict(answers, hosts) == means


def test_what_is_copied_is_the_checkout_as_it_is_now(tmp_path):
    """A change that is not committed goes along, a deleted file and an ignored one do not."""
    import subprocess

    checkout, archive = tmp_path / "checkout", tmp_path / "a.tar.gz"
    checkout.mkdir()
    git = ["git", "-C", str(checkout), "-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run([*git, "init", "-q"], check=True)
    for name, text in {"kept.py": "old", "gone.py": "", ".gitignore": "runs/\n"}.items():
        (checkout / name).write_text(text)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    (checkout / "kept.py").write_text("new")
    (checkout / "gone.py").unlink()
    (checkout / "a folder").mkdir()
    (checkout / "a folder" / "näu.sh").write_text("#!/bin/sh")
    (checkout / "a folder" / "näu.sh").chmod(0o755)
    (checkout / "runs").mkdir()
    (checkout / "runs" / "big").write_text("x")
    tpu_vm.pack(checkout, archive)
    with tarfile.open(archive) as tar:
        assert tar.getnames() == [".gitignore", "a folder/näu.sh", "kept.py"]
        assert tar.extractfile("kept.py").read() == b"new"
        assert tar.getmember("a folder/näu.sh").mode & 0o100
