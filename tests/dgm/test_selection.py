"""Who becomes a parent, against numbers worked out by hand, counting by brute force, and simulation."""

import math
import random
import statistics
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfevolve_jax.dgm import archive
from selfevolve_jax.dgm.selection import (
    Scored,
    SelectionConfig,
    clades,
    most_believed,
    next_hgm,
    parents,
    probabilities,
    scored,
)
from selfevolve_jax.errors import UserError


def agent(id, score=0.0, children=0, parent=None, solved=0, attempted=0):
    return Scored(id, parent, score, children, solved, attempted)


def chances(way, agents, **options):
    return probabilities(agents, SelectionConfig(way=way, **options))


# sigmoid(10 (s - 0.5)): s=.2 -> 1/(1+e^3) = .0474259; s=.5 -> .5; s=.8 -> 1/(1+e^-3) = .9525741
THREE = [agent(0, 0.2, children=2), agent(1, 0.5, children=1), agent(2, 0.8)]


def test_dgm_by_hand():
    # over 1 + children: .0474259/3 = .0158086; .5/2 = .25; .9525741. Their sum is 1.2183827.
    assert chances("dgm", THREE) == pytest.approx(
        {0: 0.0129751, 1: 0.2051900, 2: 0.7818348}, abs=1e-6
    )


def test_score_alone_by_hand():
    # the sigmoids add up to 1.5
    assert chances("score", THREE) == pytest.approx(
        {0: 0.0316173, 1: 1 / 3, 2: 0.6350494}, abs=1e-6
    )


def test_scaled_by_hand():
    # Scores 0, .1, .2, .4: median .15; away .15, .05, .05, .25: their median .1. With sharpness 2:
    # x = -3, -1, 1, 5; sigmoids .0474259, .2689414, .7310586, .9933071; sum 2.0407330.
    agents = [agent(i, s) for i, s in enumerate([0.0, 0.1, 0.2, 0.4])]
    expected = {0: 0.0232396, 1: 0.1317867, 2: 0.3582334, 3: 0.4867403}
    assert chances("dgm_scaled", agents, sharpness=2.0) == pytest.approx(expected, abs=1e-6)


def test_scaled_where_most_share_one_score():
    # Scores 0, 0, 0, .1: median 0, MAD 0, mean distance .025: x = 0, 0, 0, 4 with sharpness 1.
    # Sigmoids .5, .5, .5, .9820138; sum 2.4820138. Nobody is out of the race.
    agents = [agent(i, s) for i, s in enumerate([0.0, 0.0, 0.0, 0.1])]
    expected = {0: 0.2014493, 1: 0.2014493, 2: 0.2014493, 3: 0.3956520}
    assert chances("dgm_scaled", agents, sharpness=1.0) == pytest.approx(expected, abs=1e-6)
    alike = [agent(i, 0.3, children=i) for i in range(3)]  # 1, 1/2, 1/3 of 11/6
    assert chances("dgm_scaled", alike) == pytest.approx({0: 6 / 11, 1: 3 / 11, 2: 2 / 11})


def test_the_baselines():
    assert chances("random", THREE) == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3})
    assert chances("best", THREE) == {0: 0, 1: 0, 2: 1}
    assert chances("best", [agent(0, 0.4), agent(1, 0.4), agent(2, 0.3)]) == {0: 0.5, 1: 0.5, 2: 0}
    assert chances("last", [agent(7, 0.1), agent(3, 0.9)]) == {3: 0, 7: 1}
    assert chances("last", [agent(0, 0.1), agent(1, 1.0)]) == {0: 0, 1: 1}


@pytest.mark.parametrize("way", ["dgm", "dgm_scaled", "score", "random", "best"])
def test_an_agent_at_score_1_is_left_out_unless_all_are(way):
    assert chances(way, [agent(0, 0.3), agent(1, 1.0)]) == {0: 1, 1: 0}
    assert chances(way, [agent(0, 1.0), agent(1, 1.0)]) == {0: 0.5, 1: 0.5}


def test_a_scale_of_the_agents_that_take_part():
    # The one at 1 does not move the median: as in the test above with 0, .1, .2, .4.
    agents = [agent(i, s) for i, s in enumerate([0.0, 0.1, 0.2, 0.4, 1.0])]
    shown = chances("dgm_scaled", agents, sharpness=2.0)
    assert shown[3] == pytest.approx(0.4867403, abs=1e-6) and shown[4] == 0


def test_weights_that_would_underflow():
    """All sigmoids are 0 in floating point; their ratio is not."""
    shown = chances("dgm", [agent(0, 0.0), agent(1, 0.0, children=1)], sharpness=1e5)
    assert shown == pytest.approx({0: 2 / 3, 1: 1 / 3})


scores = st.one_of(st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.floats(0, 1))
archives = st.lists(st.tuples(scores, st.integers(0, 9)), min_size=1, max_size=12).map(
    lambda rows: [agent(i, s, c) for i, (s, c) in enumerate(rows)]
)
ways = st.sampled_from(["dgm", "dgm_scaled", "score", "random", "best", "last"])


@given(archives, ways)
def test_chances_sum_to_1(agents, way):
    shown = chances(way, agents)
    assert list(shown) == [a.id for a in agents]
    assert math.isclose(sum(shown.values()), 1) and all(0 <= p <= 1 for p in shown.values())


@given(archives, ways, st.randoms(use_true_random=False))
def test_the_order_of_agents_changes_nothing(agents, way, rng):
    mixed = rng.sample(agents, len(agents))
    assert chances(way, mixed) == chances(way, agents)
    config = SelectionConfig(way=way)
    drawn = parents(agents, 5, config, random.Random(3))
    assert parents(mixed, 5, config, random.Random(3)) == drawn


@given(archives, st.sampled_from(["dgm", "dgm_scaled", "score", "random", "best"]), st.data())
def test_names_change_nothing(agents, way, data):
    names = data.draw(st.permutations([3 * a.id + 1 for a in agents]))
    renamed = [agent(n, a.score, a.children) for n, a in zip(names, agents, strict=True)]
    shown, other = chances(way, agents), chances(way, renamed)
    for n, a in zip(names, agents, strict=True):
        assert math.isclose(other[n], shown[a.id], abs_tol=1e-12)


@given(
    archives.filter(lambda agents: len(agents) > 1),
    st.sampled_from(["dgm", "dgm_scaled"]),
    st.data(),
)
def test_one_more_child_makes_a_parent_less_likely(agents, way, data):
    i = data.draw(st.integers(0, len(agents) - 1))
    before = chances(way, agents)[i]
    more = [agent(a.id, a.score, a.children + (a.id == i)) for a in agents]
    after = chances(way, more)[i]
    assert after < before if 1e-12 < before < 1 - 1e-12 else after <= before


@given(archives, st.sampled_from(["dgm", "score", "dgm_scaled"]))
def test_a_higher_score_is_never_less_likely_with_as_many_children(agents, way):
    shown = chances(way, agents)
    able = [a for a in agents if a.score < 1]
    for a in able:
        for b in able:
            if a.score >= b.score and a.children <= b.children:
                assert shown[a.id] >= shown[b.id] * (1 - 1e-12)


@pytest.mark.parametrize("way", ["dgm", "dgm_scaled", "score", "random", "best"])
def test_draws_have_these_chances(way):
    config, n = SelectionConfig(way=way), 20_000
    agents = [*THREE, agent(3, 0.8, children=1), agent(4, 0.75, children=3)]
    drawn = Counter(parents(agents, n, config, random.Random(1)))
    for id, p in probabilities(agents, config).items():
        assert abs(drawn[id] - n * p) <= 4 * math.sqrt(n * p * (1 - p))


def test_bad_options_are_named():
    for bad in (
        {"way": "greedy"},
        {"sharpness": -1.0},
        {"sharpness": math.inf},
        {"midpoint": 50.0},
        {"growth": 0.0},
        {"quantile": 1.0},
        {"sharpness": math.nan},
    ):
        with pytest.raises(UserError, match=next(iter(bad))):
            SelectionConfig(**bad)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError):
        probabilities([], SelectionConfig())
    with pytest.raises(ValueError):
        probabilities([agent(1), agent(1)], SelectionConfig())
    with pytest.raises(ValueError):
        probabilities(THREE, SelectionConfig(way="hgm"))


def test_what_selection_sees_of_an_archive():
    """1 and 2 are children of 0; 3, a child of 1, is not archived. Held-out tasks are not seen."""

    def child(id, parent):
        usage = {"calls": 0, "tokens_in": 0, "tokens_out": 0, "dollars": 0.0}
        fields = dict(agent=id, parent=parent, generation=0, tree="abc", usage=usage, flags=[])
        texts = dict.fromkeys(("reason", "entry", "diagnosis", "files"), "")
        return {"event": "child", **fields, **texts, "seconds": 0.0, "time": 0.0}

    def tried(id, task, solved, split="train"):
        usage = {"calls": 0, "tokens_in": 0, "tokens_out": 0, "dollars": 0.0}
        fields = dict(
            agent=id, task=task, seed=0, split=split, solved=solved, partial=0.0, empty=False
        )
        rest = dict(group="", reason="", tests={}, usage=usage, cpu_s=0.0, wall_s=0.0, files="")
        return {"event": "evaluated", **fields, **rest}

    nodes = archive.fold(
        [
            *(child(id, parent) for id, parent in ((0, None), (1, 0), (2, 0), (3, 1))),
            tried(1, "a", True),
            tried(1, "b", False),
            tried(1, "c", True, "held_out"),
        ]
    )
    assert nodes[1].children == 1
    assert scored([nodes[0], nodes[1], nodes[2]], {0: 0.3, 1: 0.5}) == [
        agent(0, 0.3, children=2),
        agent(1, 0.5, parent=0, solved=1, attempted=2),
        agent(2, 0.0, parent=0),
    ]


# HGM


#        0 (1 of 4)
#       /          \
#  1 (3 of 5)    2 (0 of 2)
#      |
#  3 (2 of 2)
TREE = [
    agent(0, solved=1, attempted=4),
    agent(1, parent=0, solved=3, attempted=5),
    agent(2, parent=0, solved=0, attempted=2),
    agent(3, parent=1, solved=2, attempted=2),
]


def test_clades_by_hand_and_again():
    # 3: 2 of 2; 1: 3+2 of 5+2; 0: 1+5+0 of 4+7+2
    expected = {0: (6, 7), 1: (5, 2), 2: (0, 2), 3: (2, 0)}
    for _ in range(3):
        assert clades(TREE) == expected


@st.composite
def trees(draw):
    """Random trees whose ids do not follow their age; a parent may be missing."""
    n = draw(st.integers(1, 25))
    ids = draw(st.permutations(range(n)))
    agents = []
    for i in range(n):
        above = draw(st.integers(-1, i - 1)) if i else -1
        attempted = draw(st.integers(0, 9))
        solved = draw(st.integers(0, attempted))
        parent = None if above < 0 else ids[above]
        agents.append(agent(ids[i], parent=parent, solved=solved, attempted=attempted))
    return agents


@given(trees())
def test_clades_equal_a_count_by_brute_force(agents):
    above = {a.id: a.parent for a in agents}

    def descends(id, ancestor):
        while id is not None and id != ancestor:
            id = above[id]
        return id == ancestor

    expected = {}
    for a in agents:
        clade = [d for d in agents if descends(d.id, a.id)]
        expected[a.id] = (sum(d.solved for d in clade), sum(d.attempted - d.solved for d in clade))
    assert clades(agents) == expected == clades(agents)


def test_a_long_line_and_a_ring():
    line = [agent(i, parent=i - 1 if i else None, solved=1, attempted=2) for i in range(5000)]
    assert clades(line)[0] == (5000, 5000) and clades(line)[4999] == (1, 1)
    with pytest.raises(ValueError, match="ancestor"):
        clades([agent(0), agent(1, parent=2), agent(2, parent=1)])


HGM = SelectionConfig(way="hgm")


def step(agents, evaluations, budget=800, seed=0, **options) -> Any:
    return next_hgm(agents, evaluations, budget, HGM, random.Random(seed), **options)


def test_when_it_expands():
    """N^0.6: 0 -> 0, 1 -> 1, 3 -> 1.93, 4 -> 2.30, 10 -> 3.98, 11 -> 4.22."""
    one, two, four = TREE[:1], TREE[:2], TREE
    assert step(one, 0) == ("evaluate", 0)
    assert step(one, 1) == ("expand", 0)
    assert step(two, 3)[0] == "evaluate" and step(two, 4)[0] == "expand"
    assert step(four, 10)[0] == "evaluate" and step(four, 11)[0] == "expand"
    # A child on its way counts as an agent.
    assert step(two, 4, expanding=1)[0] == "evaluate"


def test_when_there_is_nothing_to_evaluate():
    assert step(TREE, 10, open_agents={2}) == ("evaluate", 2)
    assert step(TREE, 10, open_agents=())[0] == "expand"
    assert step(TREE, 10, open_agents=(), expanding=1) is None
    assert step(TREE, 800) is None and step(TREE, 900) is None


def test_draws_close_in_on_the_posterior_means_as_the_budget_is_spent():
    """With one evaluation left of a million, tau is a million. Clade means: 0: 7/15, 1: 6/9, 2: 1/4,
    3: 3/4, so 3 is expanded always; by their own counts 3 has 3/4 and 1 has 4/7."""
    late = Counter(step(TREE, 999_999, 1_000_000, s) for s in range(50))
    assert late == {("expand", 3): 50}
    full = [agent(10 + i) for i in range(5000)]  # so many that it evaluates
    late = Counter(
        step(TREE + full, 999_999, 1_000_000, s, open_agents={0, 1, 2, 3}) for s in range(50)
    )
    assert late == {("evaluate", 3): 50}
    # At the start it is open: everybody but 2 has a fair chance.
    early = Counter(step(TREE, 11, 10**9, s) for s in range(300))
    assert all(early["expand", id] > 10 for id in (0, 1, 3))


def test_two_agents_are_drawn_with_the_chance_that_an_integral_gives():
    """P(X > Y) for X ~ Beta(2, 1), Y ~ Beta(1, 1): the mean of X, 2/3 (tau 1)."""
    agents = [agent(0, solved=1, attempted=1), agent(1)]
    n = 20_000
    rng = random.Random(5)
    drawn = Counter(next_hgm(agents, 3, 10**9, HGM, rng) for _ in range(n))
    assert set(drawn) == {("evaluate", 0), ("evaluate", 1)}
    assert abs(drawn["evaluate", 0] - n * 2 / 3) <= 4 * math.sqrt(n * 2 / 9)


@given(trees(), st.integers(0, 100), st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_order_of_agents_does_not_steer_hgm(agents, evaluations, expanding, rng):
    mixed = rng.sample(agents, len(agents))
    assert step(mixed, evaluations, expanding=expanding) == step(
        agents, evaluations, expanding=expanding
    )


def test_the_final_agent_is_the_one_that_is_most_believed_in():
    # The first percentile of Beta(4, 1) is 0.01^(1/4) = .316; of Beta(21, 6) it is near .57.
    short, long = agent(0, solved=3, attempted=3), agent(1, solved=20, attempted=25)
    assert most_believed([short, long], HGM) == 1
    # At the 90th percentile: .9^(1/4) = .974 against less than .87.
    assert most_believed([short, long], SelectionConfig(way="hgm", quantile=0.9)) == 0
    # Beta(1, 1), and Beta(2, 1): x = .01 and .1
    assert most_believed([agent(4), agent(2, solved=1, attempted=1)], HGM) == 2
    assert most_believed([agent(9), agent(6)], HGM) == 6


def grow(choose, seed, found, gains, budget=200):
    """A bandit on a tree. The first agent solves 30%; its children found lines that are barren and
    fertile by turns, at rates `found` (barren, fertile), and each generation after them adds `gains`.
    Returns the hidden rate of the final agent, and the share of fertile lines in later generations.
    choose(HGM's parent, number of agents, rng): the parent to expand."""
    world, rng = random.Random(2 * seed), random.Random(2 * seed + 1)
    agents, rates, fertile, founded = [agent(0)], [0.3], [False], 0
    for n in range(budget):
        while (does := next_hgm(agents, n, budget, HGM, rng)) and does[0] == "expand":
            parent = choose(does[1], len(agents), rng)
            if parent == 0:
                fertile.append(founded % 2 == 1)
                rates.append(found[founded % 2])
                founded += 1
            else:
                fertile.append(fertile[parent])
                rates.append(min(0.95, max(0.0, rates[parent] + gains[fertile[parent]])))
            agents.append(agent(len(agents), parent=parent))
        assert does is not None
        old = agents[does[1]]
        won = world.random() < rates[old.id]
        agents[old.id] = agent(
            old.id, parent=old.parent, solved=old.solved + won, attempted=old.attempted + 1
        )
    later = [fertile[a.id] for a in agents if a.parent]
    return rates[most_believed(agents, HGM)], sum(later) / len(later)


def against_random(**world):
    """For the final rate and the share: by how many standard errors HGM's parents beat random ones."""
    by_clade = [grow(lambda chosen, n, rng: chosen, s, **world) for s in range(100)]
    at_random = [grow(lambda chosen, n, rng: rng.randrange(n), s, **world) for s in range(100)]
    shown = []
    for better, worse in zip(
        zip(*by_clade, strict=True), zip(*at_random, strict=True), strict=True
    ):
        gains = [a - b for a, b in zip(better, worse, strict=True)]
        shown.append(statistics.fmean(gains) / (statistics.stdev(gains) / 10))
    return shown


def test_it_finds_the_better_clade_more_often_than_random_parents():
    _, share = against_random(found=(0.2, 0.6), gains=(0.0, 0.0))
    assert share > 4


def test_it_goes_further_where_only_descendants_tell_lines_apart():
    rate, _ = against_random(found=(0.3, 0.3), gains=(-0.03, 0.08))
    assert rate > 2.5
