"""Sizes from a short list, so that a run compiles a handful of shapes and none later."""

from __future__ import annotations


def bucket(n: int, minimum: int = 16) -> int:
    """The smallest of minimum · {1, 1.5, 2, 3, 4, 6, 8, …} that holds n."""
    size = minimum
    while size < n:
        if size * 3 // 2 >= n:
            return size * 3 // 2
        size *= 2
    return size


def doubled(n: int, minimum: int) -> int:
    """The smallest of minimum · {1, 2, 4, …} that holds n."""
    size = minimum
    while size < n:
        size *= 2
    return size
