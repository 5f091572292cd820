"""Names that are chosen from, and names within messages."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence

__all__ = ["known", "listed", "nearest"]


def known(name: str, value: str, choices: Collection[str]) -> str:
    """The value of the argument ``name``, which must be one of the choices.

    Raises:
        ValueError: it is none of them.

    Example:
        >>> known("probe", "gaussian", ["rademacher", "gaussian"])
        'gaussian'

    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
    return value


def nearest(name: str, known: Iterable[str]) -> str:
    """A question that names the known names most like one, with a blank behind; or nothing.

    Example:
        >>> nearest("powr", ["power", "gas"])
        'did you mean power? '

    """
    near = difflib.get_close_matches(name.lower(), list(known), n=3)
    return f"did you mean {' or '.join(near)}? " if near else ""


def listed(names: Sequence[str], most: int) -> str:
    """Names for a message, the first so many of them.

    Example:
        >>> listed(["a", "b", "c", "d"], 2)
        'a, b and 2 more'

    """
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
