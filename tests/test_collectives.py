"""Collectives read off HLO: a module written by hand, and real ones of eight simulated devices."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from models import decoder
from models.config import ModelConfig
from models.params import shapes
from selfevolve_jax import sharding
from selfevolve_jax.collectives import Traffic, traffic
from selfevolve_jax.grpo.batch import Batch
from selfevolve_jax.grpo.logprobs import token_logprobs

# A loop of 3 whose body gathers, in which a loop of 5 reduces; a fusion as the TPU compiler writes a
# reduce-scatter; one gather spread over two fusions by one channel; a start and its done; the groups
# in four notations.
WRITTEN = """\
HloModule jit_step, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%inner_cond (p: (s32[], f32[4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(5)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

%inner_body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %x = f32[4]{0} get-tuple-element(%p), index=1
  %r = f32[4]{0} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %t = (s32[], f32[4]) tuple(%n, %r)
}

%outer_cond (p: (s32[], bf16[8,2])) -> pred[] {
  %c = s32[] constant(3)
  ROOT %lt = pred[] compare(%i, %c), direction=LT
}

%outer_body (p: (s32[], bf16[8,2])) -> (s32[], bf16[8,2]) {
  %g = bf16[8,2]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=2, replica_groups={{0,1},{2,3}}
  %w = (s32[], f32[4]) while(%init), condition=%inner_cond, body=%inner_body
  ROOT %t = (s32[], bf16[8,2]) tuple(%n, %g)
}

%all-reduce-scatter.1 (input: f32[16]) -> f32[2] {
  %ar = f32[16]{0} all-reduce(%input), channel_id=3, replica_groups=mesh['a'=2,'b'=4] {'a','b'}
  ROOT %ds = f32[2]{0} dynamic-slice(%ar, %at), dynamic_slice_sizes={2}
}

%piece.1 (q: s8[5]) -> s8[40] {
  ROOT %g.1 = s8[40]{0} all-gather(%q), channel_id=4, replica_groups={}, dimensions={0}
}

%piece.2 (q: s8[5]) -> s8[40] {
  ROOT %g.2 = s8[40]{0} all-gather(%q), channel_id=4, replica_groups={}, dimensions={0}
}

ENTRY %main (x: f32[16]) -> f32[2] {
  %w = (s32[], bf16[8,2]) while(%init), condition=%outer_cond, body=%outer_body
  %s = f32[2]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %f.1 = s8[40]{0} fusion(%q), kind=kCustom, calls=%piece.1
  %f.2 = s8[40]{0} fusion(%f.1), kind=kCustom, calls=%piece.2
  %p = (u8[6]{0}, u8[6]{0}, u32[]) collective-permute-start(%y), channel_id=5
  %pd = u8[6]{0} collective-permute-done(%p)
  ROOT %rs = f32[3]{0} reduce-scatter(%z), channel_id=6, replica_groups=[4,2]<=[8]
}
"""


def test_a_module_written_by_hand():
    gathered, once = 8 * 2 * 2, 40  # bf16[8,2] by two, three times; s8[40] by eight, once
    found = traffic(WRITTEN)
    assert found == {
        "all-gather": Traffic(4, 3 * gathered + once, 3 * gathered // 2 + once * 7 // 8),
        # 3 x 5 times f32[4] by four: a ring sends 2 x 3/4 of it.
        "all-reduce": Traffic(15, 15 * 16, 15 * 24),
        # The fusion's f32[16] by eight, and one of two that leaves f32[3].
        "reduce-scatter": Traffic(2, 64 + 24, 56 + 12),
        "collective-permute": Traffic(1, 6, 6),
    }


def test_a_loop_without_a_constant_bound_counts_as_told():
    unknown = WRITTEN.replace("compare(%i, %c), direction=LT", "and(%i, %any)")
    assert traffic(unknown)["all-reduce"].count == 5
    assert traffic(unknown, unknown_trips=7)["all-reduce"].count == 35


def _compiled(function, mesh, spec, shape):
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    return jax.jit(function).lower(x).compile().as_text()


def test_a_gather_in_a_scan_of_simulated_devices(mesh8):
    """Six layers, each of whose weights [16, 32], split over fsdp, is needed whole."""
    whole = NamedSharding(mesh8, PartitionSpec())

    def layers(w):
        def step(x, w):
            w = jax.lax.with_sharding_constraint(w, whole)
            return jnp.tanh(x @ w @ w.T), None

        return jax.lax.scan(step, jnp.ones((4, 16)), w)[0]

    found = traffic(_compiled(layers, mesh8, PartitionSpec(None, "fsdp"), (6, 16, 32)))
    assert found == {"all-gather": Traffic(6, 6 * 16 * 32 * 4, 6 * 16 * 32 * 4 // 2)}


def test_a_sum_over_simulated_devices(mesh8):
    found = traffic(_compiled(lambda x: x.sum(0), mesh8, PartitionSpec(("data", "fsdp")), (8, 5)))
    assert found == {"all-reduce": Traffic(1, 20, 30)}


def test_the_head_is_not_gathered_again_for_every_piece_of_scores(mesh8):
    """What the log-probs and their gradient send does not grow with the number of pieces."""
    model = ModelConfig(
        vocab_size=64, d_model=32, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48
    )
    B, T = 8, 32

    def abstract(leaf, where):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    specs = decoder.abstract_params(model)
    weights = jax.tree.map(abstract, shapes(specs), sharding.tree_shardings(specs, mesh8))
    rows = sharding.named(mesh8, ("batch", None), (B, T), "batch")
    ids, real = (jax.ShapeDtypeStruct((B, T), d, sharding=rows) for d in (jnp.int32, jnp.float32))
    batch = Batch(ids, ids, ids, ids, ids, ids, real)

    def sent(chunk):
        def total(params, batch):
            constrain = sharding.constrainer(mesh8)
            return token_logprobs(params, batch, jnp.float32(1), model, chunk, constrain)[0].sum()

        compiled = jax.jit(jax.grad(total)).lower(weights, batch).compile()
        found = traffic(compiled.as_text())
        return found["all-gather"].payload

    assert sent(4) == sent(16)
