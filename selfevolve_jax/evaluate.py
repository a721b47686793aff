"""Held-out figures: mean, majority and greedy accuracy of a policy against gold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from models.config import ModelConfig
from models.decoder import Params
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.ground_truth import Grades, grade
from selfevolve_jax.rollout.engine import RolloutConfig, Samples, generate
from selfevolve_jax.rollout.prompt_images import encode_images
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.tasks.base import Row, Task


@dataclass(frozen=True)
class Scores:
    """mean: accuracy of single samples; majority: of the vote of k; greedy: of the likeliest text.
    `grades` and `texts` hold every sample behind the first two."""

    mean: float
    majority: float
    greedy: float
    grades: Grades
    texts: list[list[str]]

    def metrics(self) -> dict[str, float]:
        return {"mean": self.mean, "majority": self.majority, "greedy": self.greedy}


def decode(tokenizer: Any, samples: Samples) -> list[list[str]]:
    """R lists of G texts. Special tokens such as an end of turn are dropped, unless the tokenizer
    treats its end mark as text."""
    R, G, _ = samples.tokens_RxGxM.shape
    flat = samples.tokens_RxGxM.reshape(R * G, -1)
    lengths = samples.lengths_RxG.reshape(-1)
    texts = tokenizer.batch_decode(
        [tokens[:n] for tokens, n in zip(flat, lengths, strict=True)], skip_special_tokens=True
    )
    return [texts[r * G : (r + 1) * G] for r in range(R)]


def sampler(
    params: Params,
    model: ModelConfig,
    task: Task,
    rows: Sequence[Row],
    *,
    key: jax.Array,
    max_new_tokens: int,
    mesh: jax.sharding.Mesh,
    rollout: RolloutConfig,
) -> Callable[[int, Sampling], tuple[list[list[str]], Samples]]:
    """draw(n, sampling): n samples of every row, as texts and as they were drawn. What the rows show is
    encoded once for all draws."""
    seen = encode_images(params, rows, task.images, model, mesh)

    def draw(n: int, sampling: Sampling) -> tuple[list[list[str]], Samples]:
        drawn = generate(
            params,
            [row.prompt_tokens for row in rows],
            [row.id for row in rows],
            n,
            key,
            sampling,
            max_new_tokens=max_new_tokens,
            stop_tokens=task.stop_tokens,
            cfg=model,
            mesh=mesh,
            config=rollout,
            images=seen,
        )
        return decode(task.tokenizer, drawn), drawn

    return draw


def score(
    params: Params,
    model: ModelConfig,
    task: Task,
    rows: Sequence[Row],
    equivalence: Equivalence,
    *,
    k: int,
    key: jax.Array,
    sampling: Sampling,
    max_new_tokens: int,
    mesh: jax.sharding.Mesh,
    rollout: RolloutConfig,
) -> Scores:
    """Draws k samples and one greedy text for every row, and grades them against gold."""
    draw = sampler(
        *(params, model, task, rows),
        key=key,
        max_new_tokens=max_new_tokens,
        mesh=mesh,
        rollout=rollout,
    )

    def run(samples: int, sampling: Sampling) -> tuple[list[list[str]], Grades]:
        texts, _ = draw(samples, sampling)
        return texts, grade(rows, texts, task.answer, equivalence)

    texts, grades = run(k, sampling)
    _, greedy = run(1, Sampling(temperature=0.0))
    return Scores(
        mean=float(np.mean(grades.correct_RxG)),
        majority=float(np.mean(grades.majority_correct_R)),
        greedy=float(np.mean(greedy.correct_RxG)),
        grades=grades,
        texts=texts,
    )
