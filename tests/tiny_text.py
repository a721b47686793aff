"""A text policy of a few thousand parameters and 64 problems for it, for tests of the trainer."""

import jax

from models.config import ModelConfig
from selfevolve_jax import state
from selfevolve_jax.tasks import arithmetic

MODEL = ModelConfig(
    vocab_size=16, d_model=32, n_layers=1, n_heads=4, n_kv_heads=4, head_dim=8, d_ff=48
)


def load_task():
    config = arithmetic.ArithmeticConfig(numbers=(4,), train_rows=64, held_out_rows=8)
    return arithmetic.load_task(config, 0)


def init_params(mesh):
    return state.init_params(MODEL, jax.random.key(0), mesh)
