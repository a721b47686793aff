"""Samples as the engine returns them, from texts, for stand-ins of it."""

import numpy as np

from selfevolve_jax.rollout.engine import Samples
from selfevolve_jax.tasks import arithmetic

TEXT = arithmetic.tokenizer()


def encode(text):
    return TEXT.encode(text, add_special_tokens=False)


def samples_of(texts, width=6):
    """texts: R lists of G; one that ends with the end mark has stopped."""
    R, G = len(texts), len(texts[0])
    tokens, lengths = np.zeros((R, G, width), np.int32), np.zeros((R, G), np.int32)
    for r, g in np.ndindex(R, G):
        ids = encode(texts[r][g])
        tokens[r, g, : len(ids)], lengths[r, g] = ids, len(ids)
    ended = np.array([[text.endswith(arithmetic.END) for text in group] for group in texts])
    return Samples(tokens, np.zeros(tokens.shape, np.float32), lengths, ended)
