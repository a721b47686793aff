"""The quickstart's agent: a tokenizer of the words that its pages use, and a tiny Qwen2.5-VL that
learnt from demonstrations.

The tokenizer has one token for a word of words.txt, for a number up to 255 and for a piece of the tool
call, so that a click is about ten tokens; anything else is spelt in characters. A word is the same
token wherever it stands, as a model of this size should copy `Zoe` from `"Zoe"` in the goal to
`{"text":"Zoe"` without learning that two tokens mean one name. For that, a word's token has the space
before it inside, and where there is none in the text, a mark before it takes it away (`_GLUE`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, get_args

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from models.config import ModelConfig, VisionConfig
from models.decoder import Params
from selfevolve_jax import made_base, sft
from selfevolve_jax.checkpoint import Policy
from selfevolve_jax.errors import UserError
from selfevolve_jax.grpo.batch import Batch
from selfevolve_jax.images import ImageConfig, load_image, preprocess
from selfevolve_jax.lookup import check_lookup, with_lookup
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.buckets import bucket
from selfevolve_jax.tasks.base import AnswerSpec, Task
from selfevolve_jax.ui_genie import agent, contract, exercises, trajectory
from selfevolve_jax.ui_genie.actions import CLOSE_TAG, OPEN_TAG, STATUSES, TOOL, Action, Name
from selfevolve_jax.ui_genie.contract import View
from selfevolve_jax.ui_genie.environment import GRID
from selfevolve_jax.ui_genie.exercises import words
from selfevolve_jax.ui_genie.miniwob import FRAME
from selfevolve_jax.ui_genie.trajectory import Trajectory

END, UNKNOWN = "<|end|>", "<unk>"
_PICTURE = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
_SPECIAL = ("<pad>", UNKNOWN, END, *_PICTURE, contract.POSITIVE, contract.NEGATIVE)
IMAGE_TOKEN = _SPECIAL.index("<|image_pad|>")
_SHOWN = "".join(_PICTURE)  # what the chat template writes for a picture
_GLUE = "\u2060"  # a word joiner: takes away the space after it; no text of ours holds one
_NUMBERS = 256  # pixels of a screen of 160 x 210, and more
_CHARACTERS = string.printable[:95] + "\n\t"
_CALL = f'{OPEN_TAG}{{"name":"{TOOL}","arguments":{{"action":"'
# A place of the grid is one token, in the list of elements and in a call alike.
_COLUMNS, _LINES = range(0, FRAME.width, GRID), range(0, FRAME.height, GRID)
# Of contract.candidate, between the values. Each with what may follow: a word without a space, or not.
_PIECES = (
    *(f'{_CALL}{name}","action_desc":"' for name in get_args(Name)),
    *(contract.PLACE, '","text":"', '","button":"', '","time":'),
    *('],"direction":"', '","distance":"', '],"time":'),
    *(f'","status":"{status}"}}}}{CLOSE_TAG}' for status in STATUSES),
    *(f"{end}}}}}{CLOSE_TAG}" for end in ('"', "]", "")),
    *('"', "#", ","),
)
# What contract's short style sets between words.
_MARKS = tuple(f" {mark}" for mark in "|:>?*+-")

# Those that begin the goal, a step so far and the answer.
_BEGIN = ":|?>"
# From the end of a candidate, tokens back to the last word of what was done: of a click's own words,
# and of the last step where the candidate is COMPLETED.
_BACK = (2, 4)

# How much of an embedding all of its kind share: the cosine of two is this squared.
_WORDS_ALIKE, _PLACES_ALIKE = 0.4, 0.7
_ROWS = 701  # purpose of random draws
# A screenshot of 160 x 210 is resized to 140 x 168: 5 x 6 = 30 tokens, in one window.
IMAGES = ImageConfig(min_pixels=140 * 168, max_pixels=140 * 196)
VISION = VisionConfig(
    d_model=32,
    n_layers=1,
    n_heads=2,
    d_ff=64,
    image_token=IMAGE_TOKEN,
    full_attention=(0,),
    window=168,
)


def tokenizer() -> Any:
    """The transformers fast tokenizer. decode(encode(text)) == text for texts of printable ASCII, line
    feeds and tabs; any other character becomes one UNKNOWN (`unknown` counts them)."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [f"{_glued(piece)}{after}" for piece in _PIECES for after in (_GLUE, "")]
    known = [*_SPECIAL, *_CHARACTERS, _GLUE, *pieces, *_MARKS]
    known += [f" {n}" for n in range(_NUMBERS)] + [f" {word}" for word in words()]
    known += _places()
    vocab = {token: i for i, token in enumerate(dict.fromkeys(known))}
    # Without merges this "BPE" is: the whole where the vocabulary has it, else its characters.
    whole = Tokenizer(models.BPE(vocab, [], unk_token=UNKNOWN, ignore_merges=True))
    whole.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(_GLUE, "\ufffd"),  # one in the text is not ours
            normalizers.Replace(Regex(_UNSPACED), f"{_GLUE} "),
        ]
    )
    longest_first = sorted(pieces, key=len, reverse=True)
    x, y = ("|".join(map(str, numbers)) for numbers in (_COLUMNS, _LINES))
    place = f"{re.escape(_glued(contract.PLACE))}{_GLUE} (?:{x}),{_GLUE} (?:{y})(?![A-Za-z0-9])"
    others = map(re.escape, [*longest_first, *_MARKS])
    parts = [place, *others, " [A-Za-z0-9]+", r"[\s\S]"]
    whole.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(parts)), behavior="isolated")
    # A mark that a model writes before something else goes without a trace.
    whole.decoder = decoders.Sequence(
        [decoders.Fuse(), decoders.Replace(f"{_GLUE} ", ""), decoders.Replace(_GLUE, "")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=whole,
        pad_token=_SPECIAL[0],
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=list(_SPECIAL[3:]),
        clean_up_tokenization_spaces=False,
        chat_template=(
            "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
            "{% for part in m.content %}{% if part.type == 'image' %}"
            + _SHOWN
            + "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
            + "{% if m.role == 'assistant' %}"
            + END
            + "{% endif %}{% endfor %}"
        ),
    )


def unknown(encoder: Any, text: str) -> int:
    """How many characters of the text the tokenizer does not know."""
    return encoder.encode(text, add_special_tokens=False).count(encoder.unk_token_id)


@dataclass(frozen=True)
class BaseConfig:
    """A base agent that is made on the spot, from demonstrations, and from made-up screens.

    A model of this size has to be taught to look and to compare before it can act or judge: beside what
    was demonstrated, it does `exercises`. On the few screens of the demonstrations it would learn those
    by heart, so half of a batch are screens that are drawn for it. So this base stands where a
    pretrained model begins: it is the agent, and what the reward model is trained from.

    model: its vocabulary holds the tokenizer's, and its image token is IMAGE_TOKEN. batch: screens a
    step. row_tokens: of a screen and as much of what it is asked as fits.
    """

    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(
            vocab_size=_rows(len(tokenizer())),
            d_model=96,
            n_layers=3,
            n_heads=2,
            n_kv_heads=2,
            head_dim=48,
            d_ff=192,
            qkv_bias=True,
            tie_embeddings=True,  # what copies a word needs no second table to learn it in
            rope_theta=1e6,  # its slow dimensions compare words over the whole of a list
            mrope_sections=(8, 8, 8),
            vision=VISION,
            unroll=3,
        )
    )
    steps: int = 500
    batch: int = 16
    row_tokens: int = 192
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=3e-3,
            schedule="cosine",
            warmup_steps=30,
            end_factor=0.05,
            weight_decay=0.0,
        )
    )

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "row_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"policy.{name}={getattr(self, name)} must be at least 1.")
        vision = self.model.vision
        if vision is None or vision.image_token != IMAGE_TOKEN:
            raise UserError(
                f"policy.model.vision must be a vision tower with image_token={IMAGE_TOKEN}, the id "
                f"of <|image_pad|> in the quickstart's tokenizer, and is {vision}."
            )
        check_lookup(self.model)


def get_base(
    config: BaseConfig,
    demonstrations: Sequence[Trajectory],
    screenshots_folder: str | os.PathLike[str],
    seed: int,
    mesh: Mesh,
    say: Callable[[str], None],
) -> Policy:
    """The base agent, from the cache or made now (and then cached, whole or not at all). Every step of
    the demonstrations is learnt from; which of them are worth it is the caller's choice.
    screenshots_folder: where their PNGs are. UserError if there are none, or for a vocabulary that is
    too small."""
    task = _task()
    made_base.check_vocabulary(config.model, task)
    learnt = agent.examples(demonstrations, screenshots_folder)
    return made_base.get(
        content_hash(config, demonstrations, seed),
        config.model,
        config.optimizer,
        config.steps,
        partial(_batches, config, learnt, task, seed),
        task,
        seed,
        mesh,
        say,
        f"{config.steps} steps of {config.batch} of {len(learnt)} views from "
        f"{len(demonstrations)} demonstrations and of made-up screens",
        partial(_begun, config.model, task.tokenizer, seed),
    )


def _begun(model: ModelConfig, encoder: Any, seed: int, params: Params) -> Params:
    """Where the base begins: with tokens of a kind alike, and with heads that look words up (`lookup`).
    What may follow a place in a call is the same for all 540 of them, and most are seen in few calls.
    Where nothing says that they are of a kind, a model goes on as the list of elements did there, and
    what it writes is no call (docs/ui_genie.md has the figures)."""
    table = np.array(params.embed)
    written = [f" {word}" for word in (*words(), *range(_NUMBERS))]
    for kind, alike in ((written, _WORDS_ALIKE), (_places(), _PLACES_ALIKE)):
        rows = sorted({*encoder.convert_tokens_to_ids(kind)})
        shared = table[rows].mean(axis=0)
        shared *= np.linalg.norm(table[rows], axis=1).mean() / np.linalg.norm(shared)
        table[rows] = alike * shared + math.sqrt(1 - alike**2) * table[rows]
    params = replace(params, embed=jax.device_put(table, params.embed.sharding))
    marks = encoder.convert_tokens_to_ids([f" {mark}" for mark in _BEGIN])
    return with_lookup(params, model, marks, _BACK, seed)


def _places() -> list[str]:
    return [_glued(f"{contract.PLACE}{x},{y}") for x in _COLUMNS for y in _LINES]


def content_hash(config: BaseConfig, demonstrations: Sequence[Trajectory], seed: int) -> str:
    """Names a base by everything that decides its weights: screenshots too, whose names are hashes of
    their content. A demonstration's id and provenance are none of it."""
    told = {
        "config": dataclasses.asdict(config),
        "demonstrations": [
            {k: v for k, v in trajectory.as_record(one).items() if k not in ("id", "source")}
            for one in demonstrations
        ],
        "seed": seed,
    }
    return made_base.content_hash(json.loads(json.dumps(told)), _SOURCES, ("pillow", "tokenizers"))


# Words without a space before them: where the mark goes.
_UNSPACED = r"(?<![ A-Za-z0-9])(?=[A-Za-z0-9])"
_SOURCES = (
    *made_base.SOURCES,
    *("grpo/batch.py", "images.py", "lookup.py", "rollout/buckets.py", "tasks/prompts.py"),
    *(f"ui_genie/{name}.py" for name in ("actions", "agent", "contract", "demos", "environment")),
    *(f"ui_genie/{name}.py" for name in ("exercises", "miniwob", "tiny", "trajectory")),
    "ui_genie/words.txt",
)


def _rows(known: int) -> int:
    """Rows of the embedding: a number that divides over devices."""
    return -(-known // 64) * 64


def _glued(text: str) -> str:
    """What the tokenizer makes of a text before it cuts it up."""
    return re.sub(_UNSPACED, f"{_GLUE} ", text)


def _task() -> Task:
    encoder = tokenizer()
    ends = (encoder.eos_token_id,)
    return Task("demonstrations", (), (), encoder, ends, AnswerSpec(), images=IMAGES)


def _batches(
    config: BaseConfig, learnt: Sequence[agent.Example], task: Task, seed: int
) -> Iterator[Batch]:
    """Half of a batch are demonstrated views, half are made up; in the second half of the steps the
    made-up ones are hard."""
    vision = config.model.vision
    assert vision is not None  # the config checks it
    if not learnt:
        raise UserError("no demonstration has a step to learn from. Fix: other tasks or seeds.")
    # What turns views into tokens needs of a policy all but its weights.
    unmade: Any = None
    policy = Policy(unmade, config.model, task.tokenizer, task.stop_tokens, 0, IMAGES)
    rng = np.random.default_rng([seed, _ROWS])
    held = [_screen(policy, example.view(), example.actions, rng, False) for example in learnt]
    made_up = config.batch // 2
    for step in range(config.steps):
        hard = 2 * step >= config.steps
        picked = [held[i] for i in rng.integers(len(held), size=config.batch - made_up)]
        drawn = [exercises.drawn_screen(rng, hard) for _ in range(made_up)]
        picked += [_screen(policy, view, (), rng, hard) for view in drawn]
        rows = [(one.prompt, _asked(one, rng, config.row_tokens)) for one in picked]
        length = bucket(max(config.row_tokens, *(sft.row_length(*row) for row in rows)))
        pictures = [[preprocess(one.image, IMAGES, vision)] for one in picked]
        yield sft.supervised_batch(rows, length, pictures, vision, few=True)


@dataclass(frozen=True)
class _Screen:
    """prompt: the tokens of what comes before the goal. The others: (goal, response) tokens."""

    image: Image.Image
    prompt: tuple[int, ...]
    demonstrated: list[sft.Pair]
    exercises: list[sft.Pair]


def _screen(
    policy: Policy, view: View, actions: Sequence[Action], rng: np.random.Generator, hard: bool
) -> _Screen:
    encode = partial(policy.tokenizer.encode, add_special_tokens=False)

    def written(goal: str, steps: Sequence[str], action: Action) -> sft.Pair:
        asked = encode(contract.short_goal(goal, steps))
        return asked, agent.response_tokens(policy, action, "short")

    def judged(goal: str, steps: Sequence[str], action: Action, right: bool) -> sft.Pair:
        told = contract.candidate_tokens(policy.tokenizer, action, "short")
        answer = encode(contract.POSITIVE if right else contract.NEGATIVE)
        return [*encode(contract.short_goal(goal, steps, "?")), *told], answer

    prompt = agent.prompt_tokens(policy, view, "short")
    own = encode(contract.short_goal(view.goal, view.history))
    return _Screen(
        load_image(view.screenshots[-1]),
        prompt[: len(prompt) - len(own)],  # goal and steps come last, so all before is shared
        [written(view.goal, view.history, action) for action in actions],
        [
            *(written(*one) for one in exercises.to_write(view, rng, hard)),
            *(judged(*one, right) for one, right in exercises.to_judge(view, rng, hard)),
        ],
    )


def _asked(one: _Screen, rng: np.random.Generator, room: int) -> list[sft.Pair]:
    """What was demonstrated, and as many exercises, in a random order, as there is room for."""
    room -= sft.row_length(one.prompt, one.demonstrated)
    drawn = (one.exercises[i] for i in rng.permutation(len(one.exercises)))
    return [*one.demonstrated, *sft.fitting(drawn, room)]
