"""A cluster's programs, as far as this machine can have them: fakes that note what they were asked."""

import json
import shutil
import sys
from pathlib import Path

# Of a machine called NAME there is one file, so that one fake can stand for the cloud over many calls.
GCLOUD = """
cloud = json.loads((here / "cloud.json").read_text())
verb = " ".join(a for a in sys.argv[1:] if a[0] != "-")
command = next((a for a in sys.argv if a.startswith("--command=")), "")
code = 0
if "create" in verb:
    cloud["life"] += 1
    cloud["queue"] = (cloud["arrivals"] or ["PROVISIONING"]).pop(0)
    cloud["node"], cloud["started"] = "CREATING", False
elif "delete" in verb:
    cloud["queue"] = None
elif "describe" in verb and cloud["queue"] is None:
    print("ERROR: NOT_FOUND: Resource was not found.", file=sys.stderr)
    code = 1
elif "queued-resources describe" in verb:
    print(cloud["queue"])
    if cloud["queue"] == "PROVISIONING":
        cloud["queue"], cloud["node"] = "ACTIVE", "READY"
elif "tpu-vm describe" in verb:
    print(cloud["node"])
elif command.endswith("worker.sh status") and not cloud["started"]:
    code = 127  # there is no worker.sh yet
elif command.endswith("worker.sh status"):
    events = cloud["lives"][cloud["life"]]
    event = events.pop(0) if len(events) > 1 else events[0]
    if event == "PREEMPTED":
        cloud["node"] = "PREEMPTED"
        code = 255
    else:
        for word in event:
            print(f"job {word} on worker")
elif "worker.sh start" in command:
    cloud["started"] = not cloud["refuses"]
    code, cloud["refuses"] = bool(cloud["refuses"]), max(0, cloud["refuses"] - 1)
(here / "cloud.json").write_text(json.dumps(cloud))
sys.exit(code)
"""


class Cluster:
    """A folder that is all of PATH, besides git; what its programs were called with."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder = folder
        folder.mkdir()
        git = shutil.which("git")
        assert git is not None
        (folder / "git").symlink_to(git)
        monkeypatch.setenv("PATH", str(folder))

    def program(self, name: str, body: str = "") -> None:
        """`name` notes its arguments and its stdin, then does `body`."""
        file = self.folder / name
        file.write_text(
            f"#!{sys.executable} -IS\nimport json, pathlib, sys\n"
            "here = pathlib.Path(sys.argv[0]).parent\n"
            "given = sys.argv[1:]\n"
            "text = sys.stdin.read() if given[-2:] == ['-f', '-'] else ''\n"
            "files = {a: open(a).read() for a in given if a.endswith('.yaml')}\n"
            "with open(here / 'calls', 'a') as f:\n"
            f"    f.write(json.dumps([{name!r}, given, text, files]) + '\\n')\n" + body
        )
        file.chmod(0o755)

    def cloud(self, *lives, arrivals=(), refuses=0) -> None:
        """gcloud, whose machines live as told: of each life, what `worker.sh status` answers at each
        look, the last for ever; PREEMPTED takes the machines away. arrivals: what became of the first
        requests. refuses: how many starts of the job fail."""
        story = {
            "queue": None,
            "node": "CREATING",
            "life": -1,
            "started": False,
            "lives": lives,
            "arrivals": arrivals,
            "refuses": refuses,
        }
        (self.folder / "cloud.json").write_text(json.dumps(story))
        self.program("gcloud", GCLOUD)

    def calls(self) -> list[tuple[str, list[str], str, dict[str, str]]]:
        file = self.folder / "calls"
        return [json.loads(x) for x in file.read_text().splitlines()] if file.exists() else []

    def deeds(self) -> list[str]:
        """What gcloud was asked to do, in a word each; what only looks is left out."""
        done = []
        for _, given, _, _ in self.calls():
            command = next((a for a in given if a.startswith("--command=")), "")
            for word, sign in (
                ("create", given[3] == "create"),
                ("delete", given[3] == "delete"),
                ("copy", given[3] == "scp"),
                ("setup", command.endswith("worker.sh setup")),
                ("start", "worker.sh start" in command),
                ("stop", command.endswith("worker.sh stop")),
                ("last", "tail -n 30" in command),
            ):
                if sign:
                    done.append(word)
        return done
