"""A job in a real sandbox, with its network cut, reaches the gateway by its socket and nothing else."""

import json

import pytest

from selfevolve_jax.dgm.contract import Usage
from selfevolve_jax.dgm.llm.config import ModelsConfig
from selfevolve_jax.dgm.llm.models import open_models
from selfevolve_jax.dgm.sandbox.bubblewrap import open_bubblewrap
from selfevolve_jax.dgm.sandbox.job import SOCKET, Job, Limits
from selfevolve_jax.llm.config import ModelConfig
from tests.openai_server import OpenAIServer

pytestmark = pytest.mark.sandbox

KEY = "sk-very-secret-1"
PROGRAM = """
import glob, http.client, json, os, socket, stat, sys

body = json.dumps({"messages": [{"role": "user", "content": "one two three"}]})
found = {}

class Gateway(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/run/model.sock")

def ask(connection, path="/v1/chat/completions"):
    try:
        connection.request("POST", path, body)
        reply = connection.getresponse()
        return [reply.status, json.loads(reply.read())]
    except OSError as error:
        return type(error).__name__

def is_socket(path):
    return os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode)

found["gateway"] = ask(Gateway("localhost"))
found["elsewhere"] = ask(Gateway("localhost"), "/v1/models")
found["endpoint"] = ask(http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=5))
files = [
    os.path.join(folder, name)
    for top in ("/run", "/tmp", "/var", "/work", "/dev/shm")
    for folder, _, names in os.walk(top)
    for name in names
]
found["sockets"] = list(filter(is_socket, files))
environments = filter(lambda path: os.access(path, os.R_OK), glob.glob("/proc/[0-9]*/environ"))
found["environment"] = "".join(open(path, errors="replace").read() for path in environments)
try:
    os.unlink("/run/model.sock")
    found["unlink"] = "done"
except OSError as error:
    found["unlink"] = type(error).__name__
print(json.dumps(found))
"""


def test_a_job_reaches_the_gateway_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with OpenAIServer(["four five"] * 2, key=KEY) as server, open_bubblewrap(1) as box:
        port = server.url.split(":")[2].split("/")[0]
        coding = ModelConfig("m", base_url=server.url, key_env="MY_KEY")
        models = open_models(ModelsConfig(coding), tmp_path)
        for _ in range(2):  # the second job has a socket of its own
            with models.session("coding", "a job") as session:
                job = Job(
                    argv=("python3", "program.py", port),
                    files={"program.py": PROGRAM.encode()},
                    socket=session.socket,
                    limits=Limits(wall_s=60, cpu_s=60),
                )
                outcome = box.run(job)
            assert outcome.exit_code == 0, outcome
            found = json.loads(outcome.stdout)
            status, reply = found["gateway"]
            assert status == 200 and reply["choices"][0]["message"]["content"] == "four five"
            assert found["elsewhere"][0] == 404
            assert isinstance(found["endpoint"], str)  # no such host, no such network
            assert found["sockets"] == [SOCKET]
            assert found["unlink"] != "done"
            assert KEY not in outcome.stdout.decode() + outcome.stderr.decode()
            assert session.usage() == Usage(1, 3, 2, 0.0)
        models.close()
    assert len(server.seen) == 2
    assert all(seen["headers"]["authorization"] == f"Bearer {KEY}" for seen in server.seen)


def test_without_a_socket_there_is_no_gateway(tmp_path):
    with open_bubblewrap(1) as box:
        job = Job(argv=("python3", "program.py", "1"), files={"program.py": PROGRAM.encode()})
        found = json.loads(box.run(job).stdout)
    assert isinstance(found["gateway"], str) and found["sockets"] == []
