"""How a command tells of a mistake."""

from __future__ import annotations


def complain(message: str) -> None:
    """One boxed message on stderr."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    Console(stderr=True).print(Panel(Text(message), title="selfevolve", title_align="left"))
