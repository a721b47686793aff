"""What every judge here reports, worked out once: answers, clusters, votes and the winner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.answers import extract
from selfevolve_jax.judges.base import Verdict
from selfevolve_jax.judges.equivalence import Equivalence, cluster_groups
from selfevolve_jax.tasks.base import AnswerSpec


@dataclass(frozen=True)
class Tally:
    """The votes of R groups of G samples.

    answers: R lists of G extracted answers, None where nothing could be parsed.
    support_RxG: int; the votes of the sample's own cluster, 0 for an unparsable sample.
    won_RxG: bool; the sample is in its group's winning cluster.
    winners: the winning cluster's representative, None for a group with no parsable answer.
    votes: each group's representatives with their votes, most first, ties as for the winner.
    majority_fraction_R: float64; the winner's votes / G, 0 without a winner.
    timeouts: equivalence checks ended by a limit.

    The winner is the cluster with most votes; among equals the one whose first sample has the
    lowest index.
    """

    answers: list[list[str | None]]
    support_RxG: np.ndarray
    won_RxG: np.ndarray
    winners: list[str | None]
    votes: list[dict[str, int]]
    majority_fraction_R: np.ndarray
    timeouts: int


def tally(texts: Sequence[Sequence[str]], spec: AnswerSpec, equivalence: Equivalence) -> Tally:
    """Extracts, clusters and counts. texts: R lists of G responses, the same G for every row."""
    if len({len(group) for group in texts}) > 1:
        raise ValueError("every row needs the same number of samples")
    if equivalence.kind != spec.equivalence:
        raise ValueError(f"an {equivalence.kind} Equivalence for a {spec.equivalence} AnswerSpec")
    before = equivalence.timeouts
    answers = [[extract(text, spec.pattern) for text in group] for group in texts]
    support, won, winners, votes = [], [], [], []
    clusters = cluster_groups(answers, equivalence.equal_pairs)
    for group, of in zip(answers, clusters, strict=True):
        # A cluster's representative is its most frequent string, the first seen among equals.
        strings = Counter(pair for pair in zip(of, group, strict=True) if pair[0] >= 0)
        names: dict[int, str | None] = {}
        for (number, string), _ in strings.most_common():
            names.setdefault(number, string)
        # A stable sort over first appearances: this is the tie rule.
        counts = Counter(number for number in of if number >= 0)
        ranked = counts.most_common()
        best = ranked[0][0] if ranked else None
        support.append([counts[number] for number in of])
        won.append([number == best for number in of])
        winners.append(None if best is None else names[best])
        votes.append({names[number]: count for number, count in ranked})
    shape = (len(texts), len(texts[0]) if texts else 0)
    support_RxG = np.asarray(support, np.int64).reshape(shape)
    won_RxG = np.asarray(won, bool).reshape(shape)
    return Tally(
        answers=answers,
        support_RxG=support_RxG,
        won_RxG=won_RxG,
        winners=winners,
        votes=votes,
        majority_fraction_R=support_RxG.max(axis=1, initial=0) / max(shape[1], 1),
        timeouts=equivalence.timeouts - before,
    )


def equal_to(
    answers: Sequence[Sequence[str | None]],
    labels: Sequence[str | None],
    equivalence: Equivalence,
) -> list[list[bool]]:
    """Whether each answer equals its row's label; False where either of them is None."""
    pairs = [
        (answer, label)
        for group, label in zip(answers, labels, strict=True)
        for answer in group
        if answer is not None and label is not None
    ]
    equal = iter(equivalence.equal_pairs(pairs))
    return [
        [answer is not None and label is not None and next(equal) for answer in group]
        for group, label in zip(answers, labels, strict=True)
    ]


def verdict(
    counted: Tally,
    rewards_RxG: np.ndarray,
    *,
    keep_R: np.ndarray | None = None,
    trained: int | None = None,
    pseudo_labels: Sequence[str | None] | None = None,
    timeouts: int = 0,
    parts: Mapping[str, np.ndarray] | None = None,
) -> Verdict:
    """A Verdict from a tally and rewards; rewards are zeroed where a sample is not trained on.

    keep_R: bool, groups that stay in the loss (default all). trained: how many of each group's
    samples are trained on, the first ones (default all G). pseudo_labels: default the tally's
    winners.
    timeouts: those beyond the tally's own. parts: other named rewards [R, G], for the log.
    Raises UserError where `trained` exceeds G.
    """
    group_size = rewards_RxG.shape[1]
    if trained is not None and len(rewards_RxG) and not 1 <= trained <= group_size:
        raise UserError(
            f"trained samples per prompt is {trained}, of {group_size} that are drawn; "
            f"it must lie between 1 and {group_size}"
        )
    trained_RxG = np.zeros(rewards_RxG.shape, bool)
    trained_RxG[:, :trained] = True
    if keep_R is not None:
        trained_RxG &= keep_R[:, None]
    return Verdict(
        rewards_RxG=np.where(trained_RxG, rewards_RxG, 0).astype(np.float32),
        trained_RxG=trained_RxG,
        answers=counted.answers,
        pseudo_labels=counted.winners if pseudo_labels is None else pseudo_labels,
        votes=counted.votes,
        majority_fraction_R=counted.majority_fraction_R.astype(np.float32),
        timeouts=counted.timeouts + timeouts,
        parts=parts or {},
    )


def check_threshold(threshold: float) -> None:
    """UserError for a vote threshold outside [0, 1]."""
    if not 0 <= threshold <= 1:
        raise UserError(f"the vote threshold is {threshold}; it must lie between 0 and 1")
