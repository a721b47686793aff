"""Questions in, rows out: suffix, chat template, tokens without a doubled BOS, the length limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfevolve_jax.errors import UserError
from selfevolve_jax.tasks.base import Row

# The paper's prompt (SRT, arXiv 2505.21444, section 4): question, then this.
BOXED_SUFFIX = "\nLet's think step by step and output the final answer within \\boxed{}."


@dataclass(frozen=True)
class Problem:
    """One problem before it becomes a `Row`: the bare question, its gold answer if it has one."""

    id: int
    question: str
    gold: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def render_prompt(
    tokenizer: Any,
    question: str,
    *,
    suffix: str = "",
    chat: bool = False,
    system: str | None = None,
) -> str:
    """The text that the model continues: question + suffix, as a user turn if `chat`.

    The chat template is the tokenizer's own, with its generation prompt. UserError if it has none,
    if it refuses the messages, or if `system` is given without `chat`.
    """
    if not chat:
        if system is not None:
            raise UserError(
                f"system={system!r} needs a chat template, and chat is off; "
                "fix: --task.chat true, or leave --task.system out"
            )
        return question + suffix
    turns = [] if system is None else [{"role": "system", "content": system}]
    return _apply_template(
        tokenizer, [*turns, {"role": "user", "content": question + suffix}], True
    )


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
) -> tuple[list[Row], int]:
    """Rows in the order of `problems`, and how many were left out for being over-long.

    A plain prompt gets the special tokens that the tokenizer puts before a text (BOS, as a rule)
    and none of those it puts after (EOS would end the prompt before the answer). A chat prompt gets
    none: a template writes its own. Neither ever gets a second BOS. Prompts of more than
    `max_prompt_tokens` tokens are left out, never truncated: a cut question has another answer.
    UserError if none is left; `name` names the data set there.
    """
    texts = [
        render_prompt(tokenizer, p.question, suffix=suffix, chat=chat, system=system)
        for p in problems
    ]
    if not texts:
        return [], 0
    # verbose=False: over-long prompts are counted below; the tokenizer need not warn as well.
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    prefix = [] if chat else _special_prefix(tokenizer)
    rows, lengths = [], []
    for problem, text, ids in zip(problems, texts, encoded, strict=True):
        tokens = tuple(ids if ids[: len(prefix)] == prefix else prefix + ids)
        lengths.append(len(tokens))
        if len(tokens) <= max_prompt_tokens:
            rows.append(Row(problem.id, text, tokens, problem.gold, problem.extra))
    if not rows:
        raise UserError(
            f"{name}: all {len(texts)} prompts are longer than max_prompt_tokens="
            f"{max_prompt_tokens} (the shortest has {min(lengths)} tokens); "
            f"fix: --task.max-prompt-tokens {min(lengths)} or more"
        )
    return rows, len(texts) - len(rows)


def _apply_template(tokenizer: Any, turns: list[dict[str, str]], generation_prompt: bool) -> str:
    from jinja2 import TemplateError  # here: with transformers, chat alone needs it

    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"chat=True, but tokenizer {tokenizer.name_or_path!r} has no chat template; "
            "fix: --task.chat false"
        )
    try:
        return tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=generation_prompt
        )
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise UserError(
            f"the chat template of tokenizer {tokenizer.name_or_path!r} refuses the roles {roles}: "
            f"{error}; fix: leave --task.system out, or --task.chat false"
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
