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
import os
import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from models.config import ModelConfig, VisionConfig
from selfevolve_jax import made_base
from selfevolve_jax.checkpoint import Policy
from selfevolve_jax.errors import UserError
from selfevolve_jax.grpo.batch import Batch
from selfevolve_jax.images import ImageConfig
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.tasks.base import AnswerSpec, Task
from selfevolve_jax.ui_genie import agent, trajectory
from selfevolve_jax.ui_genie.actions import CLOSE_TAG, OPEN_TAG, TOOL
from selfevolve_jax.ui_genie.trajectory import Trajectory

END, UNKNOWN = "<|end|>", "<unk>"
_SPECIAL = ("<pad>", UNKNOWN, END, "<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
IMAGE_TOKEN = _SPECIAL.index("<|image_pad|>")
_SHOWN = "".join(_SPECIAL[3:])  # what the chat template writes for a picture
_GLUE = "\u2060"  # a word joiner: takes away the space after it; no text of ours holds one
_NUMBERS = 256  # pixels of a screen of 160 x 210, and more
_CHARACTERS = string.printable[:95] + "\n\t"
_CALL = f'{OPEN_TAG}{{"name":"{TOOL}","arguments":{{"action":"'
# Of actions.render, between the values. Each with what may follow: a word without a space, or not.
_PIECES = (
    *(f'{_CALL}{name}","coordinate":[' for name in ("click", "long_press", "swipe")),
    *(f'{_CALL}{name}","text":"' for name in ("type", "open")),
    f'{_CALL}system_button","button":"',
    f'{_CALL}wait","time":',
    *(f'{_CALL}terminate","status":"{s}","action_desc":"' for s in ("success", "failure")),
    *('],"action_desc":"', '","action_desc":"', ',"action_desc":"'),
    *('],"direction":"', '","distance":"', '],"time":'),
    f'"}}}}{CLOSE_TAG}',
    *('"', "#", ","),
)

# A screenshot of 160 x 210 is resized to 140 x 168: 5 x 6 = 30 tokens, in one window.
IMAGES = ImageConfig(min_pixels=140 * 168, max_pixels=140 * 196)
VISION = VisionConfig(
    d_model=64,
    n_layers=2,
    n_heads=2,
    d_ff=128,
    image_token=IMAGE_TOKEN,
    full_attention=(0, 1),
    window=168,
)


def words() -> list[str]:
    """words.txt: names, filler and labels of the demonstrated tasks' pages, in order.
    tests/ui_genie/make_words.py makes it."""
    return Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split()


def tokenizer() -> Any:
    """The transformers fast tokenizer. decode(encode(text)) == text for texts of printable ASCII, line
    feeds and tabs; any other character becomes one UNKNOWN (`unknown` counts them)."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [f"{_glued(piece)}{after}" for piece in _PIECES for after in (_GLUE, "")]
    known = [*_SPECIAL, *_CHARACTERS, _GLUE, *pieces]
    known += [f" {n}" for n in range(_NUMBERS)] + [f" {word}" for word in words()]
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
    parts = [*map(re.escape, longest_first), " [A-Za-z0-9]+", r"[\s\S]"]
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
    """A base agent that is made on the spot, from demonstrations. Neither the sizes nor the settings
    were tuned.

    model: its vocabulary holds the tokenizer's, and its image token is IMAGE_TOKEN. batch: views a
    step. In 30 demonstrations of each task a view and its answer had 96 tokens in the mean and at
    most 231, the screenshot's 30 among them.
    """

    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(
            vocab_size=_rows(len(tokenizer())),
            d_model=128,
            n_layers=4,
            n_heads=4,
            n_kv_heads=2,
            head_dim=32,
            d_ff=256,
            qkv_bias=True,
            tie_embeddings=True,  # what copies a word needs no second table to learn it in
            mrope_sections=(4, 6, 6),
            vision=VISION,
            unroll=4,
        )
    )
    steps: int = 600
    batch: int = 32
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=2e-3,
            schedule="cosine",
            warmup_steps=50,
            end_factor=0.05,
            weight_decay=0.0,
        )
    )

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"policy.{name}={getattr(self, name)} must be at least 1.")
        vision = self.model.vision
        if vision is None or vision.image_token != IMAGE_TOKEN:
            raise UserError(
                f"policy.model.vision must be a vision tower with image_token={IMAGE_TOKEN}, the id "
                f"of <|image_pad|> in the quickstart's tokenizer, and is {vision}."
            )


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
        f"{len(demonstrations)} demonstrations",
    )


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
    *("grpo/batch.py", "images.py", "rollout/buckets.py", "tasks/prompts.py"),
    *(f"ui_genie/{name}.py" for name in ("actions", "agent", "contract", "tiny", "trajectory")),
    "ui_genie/words.txt",
)


def _rows(known: int) -> int:
    """Rows of the embedding: room for a reward model's two answers, so that it has the agent's shapes,
    and a number that divides over devices."""
    return -(-(known + 2) // 64) * 64


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
    # What turns views into tokens needs of a policy all but its weights.
    unmade: Any = None
    policy = Policy(unmade, config.model, task.tokenizer, task.stop_tokens, 0, IMAGES)
    return agent.sft_batches(
        policy, learnt, "short", size=config.batch, steps=config.steps, seed=seed
    )
