"""What an agent is asked and what it learns, by a tiny model of Qwen2.5-VL's kind that has learnt
nothing: texts are judged by what they depend on, and batches token by token."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from selfevolve_jax import compiles
from selfevolve_jax.checkpoint import Policy
from selfevolve_jax.errors import UserError
from selfevolve_jax.rollout.engine import RolloutConfig, Samples
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.state import init_params
from selfevolve_jax.ui_genie import agent, contract, trajectory
from selfevolve_jax.ui_genie.actions import Action, Frame
from selfevolve_jax.ui_genie.contract import View
from selfevolve_jax.ui_genie.environment import Element
from selfevolve_jax.ui_genie.trajectory import Step, Trajectory
from tests import seeing, tiny_vlm

FRAME = Frame(24, 16)
TEXT = seeing.tokenizer()
MODEL = replace(tiny_vlm.MODEL, vocab_size=len(TEXT), vision=seeing.VISION)
OK = Element("button", "Ok", (0, 0, 8, 8))
TOKENS = 6


def view(seed, goal="press", earlier=0):
    shown = tuple(seeing.png(24, 16, s) for s in range(seed - earlier, seed + 1))
    return View(goal, ("look",) * earlier, shown, FRAME, (OK,))


def press(desc, x=1):
    return Action("click", desc, coordinate=(x, 1))


@pytest.fixture(scope="module")
def policy(mesh1):
    params = init_params(MODEL, jax.random.key(0), mesh1)
    return Policy(params, MODEL, TEXT, (seeing.TEXT_END, seeing.TURN_END), 0, seeing.IMAGES)


@pytest.fixture
def ask(policy, mesh1):
    def ask(views, ids, n, seed=0, temperature=1.0, slots=16):
        return agent.propose(
            *(policy, views, ids, n),
            style="short",
            sampling=Sampling(temperature),
            seed=seed,
            mesh=mesh1,
            rollout=RolloutConfig(slots, TOKENS),
            max_new_tokens=TOKENS,
        )

    return ask


def test_samples_depend_on_seed_view_and_id_and_not_on_the_batch(ask):
    views = [view(s) for s in range(5)]
    ids = [11, 2**31 - 1, 13, 14, 15]
    whole = ask(views, ids, 3)
    assert [len(texts) for texts in whole] == [3] * 5
    assert len({text for texts in whole for text in texts}) > 10
    # alone, and in another order, two views at a time
    assert ask(views[1:2], ids[1:2], 3) == whole[1:2]
    assert ask(views[::-1], ids[::-1], 3, slots=6) == whole[::-1]
    assert ask(views, ids, 3, seed=1) != whole
    assert ask(views, [i - 1 for i in ids], 3) != whole


def test_greedy_is_the_likeliest_text_whatever_the_numbers(ask):
    views = [view(0), view(1)]
    greedy = ask(views, [1, 2], 1, temperature=0.0)
    assert greedy == ask(views, [7, 8], 1, seed=3, temperature=0.0)
    assert greedy != ask(views, [1, 2], 1)


def test_no_view_no_call(ask):
    assert ask([], [], 4) == []
    with pytest.raises(ValueError, match="1 ids for 2 views"):
        ask([view(0), view(1)], [1], 1)


def test_a_search_that_narrows_compiles_only_a_few_sizes(ask):
    views = [view(s) for s in range(12)]
    for count in (12, 8):
        ask(views[:count], range(count), 1)
    with compiles.count() as compiled:
        for count in (11, 10, 9, 7):  # in the buckets 12 and 8
            ask(views[:count], range(count), 1)
        assert compiled() == 0


def test_what_the_engine_is_asked_and_how_its_tokens_become_text(policy, mesh1, monkeypatch):
    """The current screenshot alone is shown; stop tokens go, other special tokens stay to be seen by
    the parser."""
    calls = []
    drawn = [*TEXT.encode("<a", add_special_tokens=False), seeing.TURN, seeing.TURN_END]

    def generate(params, prompts, row_ids, n, key, sampling, **rest):
        calls.append((prompts, row_ids, n, sampling, rest))
        tokens = np.array([[drawn, [*drawn[:3], 9]]], np.int32)
        stopped = np.array([[True, False]])
        return Samples(tokens, np.zeros(tokens.shape, np.float32), np.full((1, 2), 4), stopped)

    monkeypatch.setattr(agent, "generate", generate)
    seen = view(3, earlier=2)
    texts = agent.propose(
        *(policy, [seen], [5], 2),
        style="short",
        sampling=Sampling(0.5),
        seed=0,
        mesh=mesh1,
        rollout=RolloutConfig(4, 4),
        max_new_tokens=4,
    )
    cut = TEXT.decode([9], skip_special_tokens=False)
    assert texts == [["<a<|im_start|>", f"<a<|im_start|>{cut}"]]
    ((prompts, row_ids, n, sampling, rest),) = calls
    assert (list(row_ids), n, sampling) == ([5], 2, Sampling(0.5))
    assert rest["stop_tokens"] == policy.stop_tokens and rest["max_new_tokens"] == 4
    pictured = 4 * 6 // 4  # patches of 4, merged by 2 x 2
    assert prompts[0].count(seeing.IMAGE) == pictured
    _, question = contract.agent_question(seen, "short")
    text = TEXT.decode([t for t in prompts[0] if t != seeing.IMAGE])
    assert question.replace("<image>", "<|vision_start|><|vision_end|>") in text


def test_a_text_question_is_answered_without_a_screen(policy, mesh1):
    def ask(questions, ids, seed=0, slots=8):
        return agent.write(
            *(policy, questions, ids),
            sampling=Sampling(1.0),
            seed=seed,
            mesh=mesh1,
            rollout=RolloutConfig(slots, TOKENS),
            max_new_tokens=TOKENS,
        )

    whole = ask(["one", "two", "three"], [5, 6, 7])
    assert len(set(whole)) == 3
    assert ask(["three", "one"], [7, 5], slots=1) == [whole[2], whole[0]]  # whatever the batch
    assert ask(["one"], [5], seed=1) != whole[:1] and ask(["one"], [4]) != whole[:1]
    assert ask([], []) == []
    with pytest.raises(UserError, match="special token"):
        ask(["one <|im_end|>"], [5])


def made(name, steps, screens, goal="press"):
    """A trajectory whose steps are (screen, action)."""
    done = tuple(
        Step(trajectory.keep(screens[s]), (OK,), "text", action, None if action else "wrong_tool")
        for s, action in steps
    )
    return Trajectory(
        *(name, "t", 0, goal, FRAME, done),
        final=trajectory.keep(screens[0]),
        final_elements=(OK,),
        done=True,
        success=True,
    )


@pytest.fixture
def learnt(tmp_path):
    screens = [seeing.png(24, 16, s) for s in range(3)]
    trajectories = [
        made("one", [(0, press("a")), (1, press("b"))], screens),
        made("two", [(0, press("c")), (1, press("d")), (2, None)], screens),
        made("three", [(0, press("a"))], screens, goal="another"),
    ]
    shown = {trajectory.keep(png): png for png in screens}
    trajectory.write(tmp_path, trajectories, shown)
    return agent.examples(trajectories, tmp_path / trajectory.SCREENSHOTS), screens


def test_steps_share_an_example_only_where_they_share_the_prompt(learnt, policy):
    examples, screens = learnt
    # the first screens of one and two are the same view; their second ones follow other actions
    assert [[a.action_desc for a in example.actions] for example in examples] == [
        ["a", "c"],
        ["b"],
        ["d"],
        ["a"],
    ]
    views = [example.view() for example in examples]
    assert [v.screenshots for v in views] == [(screens[i],) for i in (0, 1, 1, 0)]
    assert [v.history for v in views] == [(), ("a",), ("c",), ()]
    prompts = {agent.prompt_tokens(policy, v, "short") for v in views}
    assert len(prompts) == 4


def test_no_more_than_eight_answers_share_a_prompt(tmp_path):
    screens = [seeing.png(24, 16)]
    many = [made(str(i), [(0, press(str(i)))], screens) for i in range(19)]
    found = agent.examples(many, tmp_path)
    assert [len(example.actions) for example in found] == [8, 8, 3]
    assert [a.action_desc for e in found for a in e.actions] == [str(i) for i in range(19)]


def test_a_batch_token_by_token(learnt, policy):
    examples, _ = learnt
    (batch,) = agent.sft_batches(policy, examples, "short", size=4, steps=1, seed=0)
    assert batch.tokens_BxT.shape[0] == 4 and batch.pixels is not None
    found = {}
    for tokens, ids in zip(batch.tokens_BxT, batch.sequence_ids_BxT, strict=True):
        answers = [tokens[ids == i].tolist() for i in np.unique(ids[ids >= 0])]
        start = int(np.argmax(ids >= 0))
        found[tuple(tokens[:start].tolist())] = answers
    for example in examples:
        answers = found.pop(agent.prompt_tokens(policy, example.view(), "short"))
        # the tokenizer's EOS, although it is not the first stop token
        assert [answer[-1] for answer in answers] == [seeing.TURN_END] * len(answers)
        want = [contract.candidate(action, "short") for action in example.actions]
        assert [TEXT.decode(a[:-1]) for a in answers] == want
    assert not found


def test_the_order_is_seeded_whole_and_can_be_gone_on_with(learnt, policy):
    examples, _ = learnt

    def of(seed, steps=6, start=0):
        batches = agent.sft_batches(
            policy, examples, "short", size=2, steps=steps, seed=seed, start=start
        )
        return [batch.tokens_BxT.tolist() for batch in batches]

    first = of(1)
    assert len(first) == 6 and of(1) == first and of(1, start=4) == first[4:]
    assert of(2) != first

    def prompt_of(row):  # the answers begin with the call's tag
        text = TEXT.decode(row)
        return text[: text.index("<tool_call>")]

    epochs = [[prompt_of(r) for batch in first[i : i + 2] for r in batch] for i in (0, 2, 4)]
    assert [len(set(epoch)) for epoch in epochs] == [4, 4, 4]
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_steps_for_epochs():
    assert [agent.sft_steps(count, 4) for count in (10, 8, 1)] == [3, 2, 1]
    assert agent.sft_steps(10, 4, 2.0) == 5


def test_nothing_to_learn_from_and_a_lost_screenshot_are_said(learnt, policy, tmp_path):
    examples, screens = learnt
    with pytest.raises(UserError, match=r"no steps to learn from.*fix"):
        next(agent.sft_batches(policy, [], "short", size=2, steps=1, seed=0))
    (tmp_path / trajectory.SCREENSHOTS / trajectory.keep(screens[0])).unlink()
    with pytest.raises(UserError, match=r"screenshot .* cannot be read"):
        next(agent.sft_batches(policy, examples, "short", size=4, steps=1, seed=0))
    blind = replace(policy, model=replace(MODEL, vision=None), images=None)
    with pytest.raises(UserError, match="vision-language"):
        next(agent.sft_batches(blind, examples, "short", size=4, steps=1, seed=0))
