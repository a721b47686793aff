"""What the measurements rest on: FLOPs by hand, the same samples in both ways of batching, memory's
two ways to one gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.cli import main
from models.config import ModelConfig
from selfevolve_jax.bench import memory, own, workload
from selfevolve_jax.checkpoint import Policy
from selfevolve_jax.state import init_params

CFG = ModelConfig(
    vocab_size=32, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=16
)


def test_flops_and_bytes_by_hand():
    # A layer: q 8·8, k and v 8·4 each, o 8·8, gate, up and down 8·16 each; the head 8·32.
    assert own.matmul_parameters(CFG) == 2 * (64 + 32 + 32 + 64 + 3 * 128) + 256
    # A token: twice that, and q·k and weights·v over 2 layers of 2 heads of 4 at 5 places.
    assert own.decode_flops(CFG, 3, 5) == 3 * (2 * 1408 + 2 * 2 * 2 * 8 * 5)
    assert own.decode_bytes(CFG, 3, 5) == 4 * (1408 + 2 * 2 * 4 * 3 * 5)
    # Causal: 1 + 2 + 3 places over the 3 tokens of a row, and 3 times for the backward pass.
    assert own.train_flops(CFG, 2, 3) == 3 * 2 * (3 * 2 * 1408 + 2 * 2 * 2 * 8 * 6)


def test_batches_draw_the_tokens_that_slots_draw(mesh1):
    params = init_params(CFG, jax.random.key(0), mesh1)
    sizes = workload.Sizes(prompts=8, samples=2, max_new_tokens=6, rounds=1)
    prompts = [[3 + i, 4, 5, 6][: 2 + i % 3] for i in range(8)]
    policy = Policy(params, CFG, None, (2,), 0)
    work = workload.Workload(sizes, policy, mesh1, "", prompts, [], 2, print)
    batched = [own._synchronous(work, start, 2, 4) for start in range(0, 8, 2)]
    continuous = own._continuous(work, slots=4, chunk=4)
    assert batched == continuous.lengths_RxG.reshape(4, -1).sum(axis=1).tolist()
    assert len(set(continuous.lengths_RxG.ravel().tolist())) > 1


def test_both_ways_to_the_log_probs_give_one_gradient(monkeypatch, mesh1):
    small = ModelConfig(50, 8, 1, 1, 1, 8, 8, tie_embeddings=True)
    monkeypatch.setattr(memory, "_CFG", small)
    params = init_params(small, jax.random.key(0), mesh1)
    batch = memory.batch(300)  # more than one chunk
    (a, grad_a), (b, grad_b) = (
        jax.value_and_grad(f)(params, batch) for f in (memory.whole, memory.chunked)
    )
    np.testing.assert_allclose(a, b, rtol=1e-5)
    for x, y in zip(jax.tree.leaves(grad_a), jax.tree.leaves(grad_b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)
    assert jnp.abs(grad_a.embed).max() > 0.1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["speed"], "measurement 'speed' is unknown; choose some of rollout"),
        (["decode", "--out", "/nowhere/x.json"], "the folder of /nowhere/x.json does not exist"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    assert ended.value.code == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())
