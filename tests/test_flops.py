"""FLOPs worked out by hand, and against what XLA counts of the same program where it has no loop."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from models import decoder
from models.config import ModelConfig
from models.params import shapes
from selfevolve_jax import flops
from tests import tiny_vlm

# Two layers; per token and layer: q 4x(2x3), k and v 4x(1x3) each, o (2x3)x4, three of 4x5.
SMALL = ModelConfig(
    vocab_size=7, d_model=4, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=2, d_ff=5
)


def test_weights_that_a_token_meets_by_hand():
    q, kv, o, mlp = 4 * 2 * 2, 2 * 4 * 1 * 2, 2 * 2 * 4, 3 * 4 * 5
    assert flops.layer_weights(SMALL) == 2 * (q + kv + o + mlp)
    norms = 2 * 2 * 4
    layers = decoder.abstract_params(SMALL).layers
    counted = sum(jnp.zeros(s.shape).size for s in jax.tree.leaves(layers))
    assert counted == flops.layer_weights(SMALL) + norms


def test_attention_and_head_by_hand():
    # A pair: a product of 2 for the score and one of 2 for the value, 2 FLOPs each, 2 heads, 2 layers.
    assert flops.attention(SMALL, 10) == 10 * 2 * 2 * (2 * 2 + 2 * 2)
    assert flops.head(SMALL, 3) == 2 * 3 * 4 * 7
    assert flops.causal_pairs(3) == 1 + 2 + 3


def test_seven_billion_parameters_take_fourteen_gigaflops_a_token():
    """The usual two per parameter, the embedding's aside, which is looked up."""
    from selfevolve_jax.pretrained.published import SIZES

    cfg = SIZES["Qwen/Qwen2.5-Math-7B"]
    total = flops.layers(cfg, 1, 0) + flops.head(cfg, 1)
    embedding, small = cfg.vocab_size * cfg.d_model, 28 * (2 * 3584 + 4608) + 3584
    assert total == 2 * (7_615_616_512 - embedding - small)


def test_the_forward_pass_is_what_xla_counts():
    """One layer, unrolled, so that nothing is in a loop; products dominate at this size."""
    cfg = replace(
        SMALL,
        n_layers=1,
        d_model=64,
        n_heads=4,
        n_kv_heads=2,
        head_dim=32,
        d_ff=256,
        vocab_size=512,
    )
    B, T = 2, 64
    ids = jax.ShapeDtypeStruct((B, T), jnp.int32)

    def forward(params, tokens, positions, segments, branches):
        hidden = decoder.forward(params, tokens, positions, segments, branches, cfg)
        return decoder.logits(params, hidden, cfg)

    weights = shapes(decoder.abstract_params(cfg))
    analysis = jax.jit(forward).lower(weights, ids, ids, ids, ids).compile().cost_analysis()
    ours = flops.layers(cfg, B * T, B * T * T) + flops.head(cfg, B * T)
    assert ours <= analysis["flops"] < 1.1 * ours


def test_the_tower_by_hand():
    """d 16, 2 layers of which one sees whole images, d_ff 16, patches of 3x2x4x4 = 96 values; 2x2
    patches a unit, 16-pixel windows of 16 patches."""
    cfg = tiny_vlm.VISION
    P, D = 32, 16
    weights = 96 * D + 2 * (4 * D * D + 3 * D * 16)
    merger = (64 * 64 + 64 * 32) / 4
    keys = P + 16  # the whole image in one layer, its window in the other
    assert flops.tower(cfg, 32, P, 3) == 3 * P * (2 * (weights + merger) + 4 * D * keys)
