"""Questions in, rows out: suffix, images, chat template, tokens without a doubled BOS, the length
limit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.config import VisionConfig
from selfevolve_jax.errors import UserError
from selfevolve_jax.images import ImageConfig, load_image, picture_tokens, smart_resize
from selfevolve_jax.tasks.base import Row

# The paper's prompt (SRT, arXiv 2505.21444, section 4): question, then this.
BOXED_SUFFIX = "\nLet's think step by step and output the final answer within \\boxed{}."
# Where an image stands in a question.
IMAGE_MARKER = "<image>"


@dataclass(frozen=True)
class Problem:
    """One problem before it becomes a `Row`: the bare question, its gold answer if it has one, and
    its images, each a path or the bytes of a file, in the order of their markers in the question.
    `where` is what messages call it, such as "file, line 3"."""

    id: int
    question: str
    gold: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    images: tuple[str | bytes, ...] = ()
    where: str = ""


def render_prompt(
    tokenizer: Any,
    question: str,
    *,
    suffix: str = "",
    chat: bool = False,
    system: str | None = None,
    images: int | None = None,
) -> str:
    """The text that the model continues: question + suffix, as a user turn if `chat`.

    The chat template is the tokenizer's own, with its generation prompt. Images stand where the
    question has an `<image>`, or before it if it has none; what stands there in the text is the
    template's affair. images: how many there are; None where the policy reads text only, and
    `<image>` is text. UserError if there is no template, if it refuses the messages, if `system` or
    images are given without `chat`, or if the question marks more or fewer images than there are.
    """
    marked = 0 if images is None else question.count(IMAGE_MARKER)
    if marked and marked != images:
        raise UserError(
            f"the question marks {marked} place(s) with {IMAGE_MARKER} for {images} image(s); "
            "fix: a marker for each image, or none"
        )
    if images and not chat:
        raise UserError(
            "images need a chat template, which says how a prompt holds them, and chat is off; "
            "fix: --task.chat"
        )
    if not chat:
        if system is not None:
            raise UserError(
                f"system={system!r} needs a chat template, and chat is off; "
                "fix: --task.chat, or leave --task.system out"
            )
        return question + suffix
    turns = [] if system is None else [{"role": "system", "content": system}]
    content = _parts(question, suffix, images) if images else question + suffix
    return _apply_template(tokenizer, [*turns, {"role": "user", "content": content}], True)


def stop_tokens(
    tokenizer: Any, *, chat: bool = False, known: Sequence[int] = ()
) -> tuple[int, ...]:
    """Ids that end a response: those `known` of the policy, the tokenizer's EOS and, if `chat`, what
    its template puts after an assistant turn (base checkpoints often carry a template whose
    end-of-turn is not their EOS). UserError if there is none."""
    found = list(known)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in found:
        found.append(int(tokenizer.eos_token_id))
    if chat:
        mark = "selfevolve"
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
        _, seen, after = _apply_template(tokenizer, turns, False).rpartition(mark)
        ids = tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"] if seen else []
        if ids and ids[0] in tokenizer.all_special_ids and ids[0] not in found:
            found.append(int(ids[0]))
    if not found:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token, so no response "
            "could ever end; fix: set eos_token in its tokenizer_config.json"
        )
    return tuple(found)


def tokenize_rows(
    tokenizer: Any,
    problems: Sequence[Problem],
    *,
    name: str,
    suffix: str = "",
    chat: bool = False,
    system: str | None = None,
    max_prompt_tokens: int = 1024,
    vision: VisionConfig | None = None,
    images: ImageConfig | None = None,
) -> tuple[list[Row], int]:
    """Rows in the order of `problems`, and how many were left out for being over-long.

    A plain prompt gets the special tokens that the tokenizer puts before a text (BOS, as a rule)
    and none of those it puts after (EOS would end the prompt before the answer). A chat prompt gets
    none: a template writes its own. Neither ever gets a second BOS. Prompts of more than
    `max_prompt_tokens` tokens are left out, never truncated: a cut question has another answer, and
    a cut image has no meaning.

    vision, images: of the policy, None for one that reads text only. Each image token that the
    template wrote is repeated once for every merge unit of its image; `Row.prompt` keeps the one.
    UserError if no prompt is left (`name` names the data set there), and, with the row's name, for
    an image that cannot be read or a prompt whose image tokens are not those of its images.
    """
    texts = []
    for problem in problems:
        text_only = vision is None and not problem.images
        # What is wrong with a text alone is wrong with all: the template, the options.
        with contextlib.nullcontext() if text_only else _named(problem, name):
            if not text_only:
                _check_images(tokenizer, problem, (suffix, system or ""), vision, images)
            text = render_prompt(
                tokenizer,
                problem.question,
                suffix=suffix,
                chat=chat,
                system=system,
                images=None if text_only else len(problem.images),
            )
        texts.append(text)
    if not texts:
        return [], 0
    # verbose=False: over-long prompts are counted below; the tokenizer need not warn as well.
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    prefix = [] if chat else _special_prefix(tokenizer)
    rows, lengths = [], []
    for problem, text, ids in zip(problems, texts, encoded, strict=True):
        tokens = tuple(ids if ids[: len(prefix)] == prefix else prefix + ids)
        if vision is not None:
            with _named(problem, name):
                tokens = expand_images(tokenizer, tokens, problem.images, vision, images)
        lengths.append(len(tokens))
        if len(tokens) <= max_prompt_tokens:
            rows.append(Row(problem.id, text, tokens, problem.gold, problem.extra, problem.images))
    if not rows:
        raise UserError(
            f"{name}: all {len(texts)} prompts are longer than max_prompt_tokens="
            f"{max_prompt_tokens} (the shortest has {min(lengths)} tokens); "
            f"fix: --task.max-prompt-tokens {min(lengths)} or more"
        )
    return rows, len(texts) - len(rows)


@contextlib.contextmanager
def _named(problem: Problem, name: str) -> Iterator[None]:
    """Puts the row's name before what is wrong with it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{problem.where or f'{name}, row {problem.id}'}: {error}") from error


def _check_images(
    tokenizer: Any,
    problem: Problem,
    around: Sequence[str],
    vision: VisionConfig | None,
    images: ImageConfig | None,
) -> None:
    """UserError for images that the policy does not take, and for a text that would be one."""
    if problem.images and (vision is None or images is None):
        raise UserError(
            f"it has {len(problem.images)} image(s), and this policy reads text only; "
            "fix: a vision-language checkpoint, such as Qwen2.5-VL"
        )
    assert vision is not None
    token = tokenizer.convert_ids_to_tokens(vision.image_token)
    if token and any(token in text for text in (problem.question, *around)):
        raise UserError(
            f"the text contains {token}, which stands for a piece of an image; fix: take it out "
            f"(an image's place is marked with {IMAGE_MARKER})"
        )


def _parts(question: str, suffix: str, images: int) -> list[dict[str, str]]:
    """A user turn's content: images in their places, texts between them."""
    texts = question.split(IMAGE_MARKER)
    if len(texts) == 1:
        texts = [*[""] * images, question]
    texts[-1] += suffix
    parts: list[dict[str, str]] = []
    for i, text in enumerate(texts):
        parts += [{"type": "image"}] * (i > 0) + [{"type": "text", "text": text}] * bool(text)
    return parts


def expand_images(
    tokenizer: Any,
    tokens: tuple[int, ...],
    pictures: Sequence[str | bytes],
    vision: VisionConfig,
    images: ImageConfig | None,
) -> tuple[int, ...]:
    """The prompt with as many image tokens for each image as it has merge units."""
    sizes = []
    for picture in pictures:
        assert images is not None
        seen = load_image(picture)
        height, width = smart_resize(
            seen.height, seen.width, vision.unit, images.min_pixels, images.max_pixels
        )
        sizes.append(picture_tokens((height // vision.patch, width // vision.patch), vision))
    there = tokens.count(vision.image_token)
    if there != len(sizes):
        raise UserError(
            f"the prompt has {there} image token(s) for {len(sizes)} image(s), as the chat template "
            f"of tokenizer {tokenizer.name_or_path!r} writes it; fix: a template that writes one "
            "for each image"
        )
    left = iter(sizes)
    counts = [next(left) if token == vision.image_token else 1 for token in tokens]
    return tuple(t for t, n in zip(tokens, counts, strict=True) for _ in range(n))


def _apply_template(tokenizer: Any, turns: list[dict[str, Any]], generation_prompt: bool) -> str:
    from jinja2 import TemplateError  # here: with transformers, chat alone needs it

    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"chat=True, but tokenizer {tokenizer.name_or_path!r} has no chat template; "
            "fix: --task.no-chat"
        )
    try:
        return tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=generation_prompt
        )
    except (TemplateError, TypeError) as error:
        # A template that adds texts up raises TypeError for a turn that is a list of parts.
        if any(isinstance(turn["content"], list) for turn in turns):
            raise UserError(
                f"the chat template of tokenizer {tokenizer.name_or_path!r} takes no images: "
                f"{error}; fix: the template that the vision-language model came with"
            ) from error
        roles = ", ".join(turn["role"] for turn in turns)
        raise UserError(
            f"the chat template of tokenizer {tokenizer.name_or_path!r} refuses the roles {roles}: "
            f"{error}; fix: leave --task.system out, or --task.no-chat"
        ) from error


def _special_prefix(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer adds before a text. Found by comparing an encoding with
    and without them, since BOS may equal EOS, and a declared BOS is not always added."""
    bare = tokenizer("1", add_special_tokens=False)["input_ids"]
    full = tokenizer("1")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return list(full[:start])
    return []
