"""Eight simulated CPU devices for every test; a test that wants one uses `mesh1`.

Compiling is most of what the tests take, and the compiler's optimiser most of that, so it is off: what
is computed is the same (test_decoder.py takes a third of the CPU time).
"""

import os
from importlib import metadata

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        # Later versions end the process for a flag that they do not know.
        *["--xla_cpu_use_fusion_emitters=false"] * metadata.version("jaxlib").startswith("0.10."),
    )
)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import jax
import pytest

from models.config import ModelConfig
from selfevolve_jax import sharding

# No test asserts a time: a busy machine takes what it takes.
hypothesis.settings.register_profile("any_machine", deadline=None)
hypothesis.settings.load_profile("any_machine")


@pytest.fixture(scope="session")
def mesh1():
    """One device."""
    return sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def home(tmp_path_factory, mesh1):
    """A cache of its own, and one device, for a module that says so:
    `pytestmark = pytest.mark.usefixtures("home")`."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("SELFEVOLVE_CACHE", str(folder))
        patch.setattr(sharding, "make_mesh", lambda config: mesh1)
        yield folder


@pytest.fixture(scope="session")
def mesh8():
    """Eight devices as data 2 x fsdp 2 x tensor 2."""
    return sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))


@pytest.fixture(scope="session")
def tiny():
    """A decoder with every kind of head sharing: 4 query heads on 2 kv heads; vocabulary 16."""
    return ModelConfig(
        vocab_size=16, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48
    )
