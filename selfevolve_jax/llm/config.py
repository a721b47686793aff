"""Where a language model is found, and what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from selfevolve_jax.errors import UserError

Api = Literal["openai", "anthropic"]
ADDRESSES = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}
KEYS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}


@dataclass(frozen=True)
class ModelConfig:
    """model: its name at the endpoint. api: what the endpoint speaks; "openai" is also vLLM, SGLang,
    Ollama and llama.cpp. base_url: the endpoint's address, such as http://localhost:8000/v1; unset, the
    maker's own. key_env: the NAME of the environment variable that holds the key; unset, OPENAI_API_KEY
    or ANTHROPIC_API_KEY; an endpoint that needs no key leaves the variable unset. max_tokens: of one
    answer. temperature: unset, the server's own. timeout_s: of one try. attempts: tries of one call,
    with pauses of backoff_s, twice as long each time. price_in, price_out: US dollars a million tokens.
    """

    model: str = ""
    api: Api = "openai"
    base_url: str | None = None
    key_env: str | None = None
    max_tokens: int = 4096
    temperature: float | None = None
    timeout_s: float = 300.0
    attempts: int = 5
    backoff_s: float = 1.0
    price_in: float = 0.0
    price_out: float = 0.0

    def __post_init__(self) -> None:
        if self.api not in ADDRESSES:
            raise UserError(f'api={self.api!r} is unknown. Give "openai" or "anthropic".')
        if self.base_url is not None:
            try:
                parts = urlsplit(self.base_url)
                right = parts.scheme in ("http", "https") and parts.hostname
                secret = parts.username or parts.password
            except ValueError:
                right = secret = None
            if secret:
                raise UserError(
                    "base_url holds a user name or password. Put the key into an environment variable, "
                    "and name that by key_env."
                )
            if not right:
                raise UserError(
                    f"base_url={self.base_url!r} is no address such as http://localhost:8000/v1."
                )
        if self.key_env is not None and not self.key_env.replace("_", "a").isalnum():
            # Most likely the key itself: it is not repeated.
            raise UserError(
                "key_env is no name of an environment variable. Give the variable's name, not the key."
            )
        if self.max_tokens < 1 or self.attempts < 1:
            raise UserError(
                f"max_tokens={self.max_tokens}, attempts={self.attempts}: give at least 1 each."
            )
        for name in ("timeout_s", "backoff_s", "price_in", "price_out", "temperature"):
            value = getattr(self, name)
            least = "more than 0" if name == "timeout_s" else "at least 0"
            if value is not None and not (
                math.isfinite(value) and (value > 0 if name == "timeout_s" else value >= 0)
            ):
                raise UserError(f"{name}={value}: give a number that is {least}.")

    @property
    def address(self) -> str:
        """What the client wants: with /v1 for OpenAI's, without for Anthropic's."""
        if self.base_url is None:
            return ADDRESSES[self.api]
        url = self.base_url.rstrip("/").removesuffix("/chat/completions")
        return url.removesuffix("/v1") if self.api == "anthropic" else url

    @property
    def key_variable(self) -> str:
        return self.key_env or KEYS[self.api]

    def dollars(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6
