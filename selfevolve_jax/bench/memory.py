"""Prints by how many GiB log-probs and their gradient raise this process's peak memory.

python -m selfevolve_jax.bench.memory chunked|whole
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from models import decoder
from models.config import ModelConfig
from selfevolve_jax import sharding
from selfevolve_jax.grpo.batch import Batch
from selfevolve_jax.grpo.config import GRPOConfig
from selfevolve_jax.grpo.logprobs import token_logprobs
from selfevolve_jax.state import init_params

STATUS = Path("/proc/self/status")
_T = 2048
_CFG = ModelConfig(151_936, 64, 1, 1, 1, 64, 64, tie_embeddings=True)  # scores are all that counts


def whole(params: decoder.Params, batch: Batch) -> jax.Array:
    """The textbook's: all scores at once."""
    tokens, zeros = batch.tokens_BxT, jnp.zeros_like(batch.tokens_BxT)
    hidden = decoder.forward(params, tokens, batch.positions, zeros, zeros, _CFG)
    logp = jax.nn.log_softmax(decoder.logits(params, hidden[:, :-1], _CFG))
    return jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1).sum()


def chunked(params: decoder.Params, batch: Batch) -> jax.Array:
    """Ours."""
    logp, _ = token_logprobs(params, batch, jnp.float32(1.0), _CFG, GRPOConfig().logprob_chunk)
    return logp.sum()


def batch(length: int) -> Batch:
    """One row in which every token but the first is trained on."""
    tokens = np.random.default_rng(0).integers(0, _CFG.vocab_size, (1, length)).astype(np.int32)
    places = np.arange(length, dtype=np.int32)[None]
    zeros = np.zeros((1, length), np.int32)
    sequences = np.where(places > 0, 0, -1).astype(np.int32)
    source = np.maximum(places - 1, 0)
    return Batch(tokens, places, zeros, zeros, sequences, source, zeros.astype(np.float32))


def peak_kib() -> int:
    """Of this program alone: what getrusage calls the peak is handed on from the process that started
    it, and the benchmark's is larger than anything here."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines["VmHWM"].split()[0])


def main() -> None:
    how = {"chunked": chunked, "whole": whole}[sys.argv[1]]
    params = init_params(_CFG, jax.random.key(0), sharding.make_mesh(sharding.MeshConfig(-1, 1, 1)))
    one = batch(_T)
    step = jax.jit(jax.value_and_grad(how)).lower(params, one).compile()
    before = peak_kib()
    jax.block_until_ready(step(params, one))
    print((peak_kib() - before) / 2**20)


if __name__ == "__main__":
    main()
