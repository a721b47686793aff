"""A policy that sees never emits the token that stands for a piece of an image, however eager."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfevolve_jax import sharding, state
from selfevolve_jax.grpo.batch import add_images, build_batch
from selfevolve_jax.grpo.logprobs import token_logprobs
from selfevolve_jax.rollout.engine import RolloutConfig, generate
from selfevolve_jax.rollout.prompt_images import encode_images
from selfevolve_jax.rollout.sampling import Sampling
from tests import tiny_vlm
from tests.tiny_vlm import MODEL

IMAGE = tiny_vlm.VISION.image_token


@pytest.fixture(scope="module")
def eager(mesh1):
    """A policy whose likeliest token, by far, is the image token."""
    params = state.init_params(MODEL, jax.random.key(0), mesh1)
    # The final norm gives every hidden state an equal first feature; the head reads it.
    head = params.head.at[0].set(0.0).at[:, IMAGE].set(0.0).at[0, IMAGE].set(50.0)
    embed = params.embed.at[:, 0].set(3.0)
    return replace(params, head=head, embed=embed)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.0), Sampling(0.7, top_p=0.99, min_p=0.01)]
)
def test_it_is_never_drawn_and_the_trainer_agrees(eager, mesh1, sampling):
    rows = tiny_vlm.task().train[:3]
    seen = encode_images(eager, rows, tiny_vlm.IMAGES, MODEL, mesh1)
    prompts = [row.prompt_tokens for row in rows]
    samples = generate(
        eager,
        prompts,
        [row.id for row in rows],
        4,
        jax.random.key(1),
        sampling,
        max_new_tokens=6,
        stop_tokens=(15,),
        cfg=MODEL,
        mesh=mesh1,
        config=RolloutConfig(slots=8, chunk=8),
        images=seen,
    )
    inside = np.arange(6) < samples.lengths_RxG[..., None]
    assert inside.sum() > 20 and not (samples.tokens_RxGxM[inside] == IMAGE).any()
    assert np.isfinite(samples.logprobs_RxGxM[inside]).all()
    if sampling.temperature != 1.0:
        return
    batch = sharding.put_batch(build_batch(prompts, samples, images=seen), mesh1)
    batch = add_images(batch, seen, len(rows), 4, False, mesh1)
    constrain = sharding.constrainer(mesh1)

    def mean(params):
        logprobs, entropy = token_logprobs(params, batch, jnp.float32(1.0), MODEL, 16, constrain)
        return logprobs.sum(), (logprobs, entropy)

    gradient, (logprobs, entropy) = jax.jit(jax.grad(mean, has_aux=True))(eager)
    ids = np.asarray(batch.sequence_ids_BxT)
    ours = np.concatenate([np.asarray(logprobs)[ids == n] for n in range(12)])
    np.testing.assert_allclose(ours, samples.logprobs_RxGxM[inside], atol=1e-5, rtol=0)
    assert np.isfinite(entropy).all() and (np.asarray(entropy)[ids >= 0] > 0).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert not np.asarray(gradient.head[:, IMAGE]).any()
