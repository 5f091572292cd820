"""Numbers as tables write them: as many digits as their errors deserve."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeGuard

__all__ = [
    "clip",
    "count",
    "decimals",
    "finite",
    "fixed",
    "plus_minus",
    "power",
    "significant",
    "whole",
]


def finite(value: float | None) -> TypeGuard[float]:
    """Tell whether there is a value, and it is finite."""
    return value is not None and math.isfinite(value)


def fixed(value: float | None, digits: int) -> str:
    """Return a value at so many decimals; "" for None, short where it is not finite or vast."""
    if value is None:
        return ""
    if not math.isfinite(value) or abs(value) >= 1e7:
        return f"{value:.4g}"
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: never "-0.000"


def plus_minus(value: float | None, error: float | None, digits: int) -> str:
    """Return "value ± error" at so many decimals; "" for no value, no ± where no error is known."""
    text = fixed(value, digits)
    return f"{text} ± {fixed(error, digits)}" if finite(value) and finite(error) else text


def significant(value: float | None) -> str:
    """Three significant digits, without an exponent where a reader can do without."""
    if value is None:
        return ""
    if not math.isfinite(value) or value == 0 or not 1e-4 <= abs(value) < 1e7:
        return f"{value:.3g}"
    return f"{value:,.{max(2 - math.floor(math.log10(abs(value))), 0)}f}"


def power(value: float | None) -> str:
    """Return a value as a power of ten with two digits; "" for None."""
    return "" if value is None else f"{value:.1e}"


def count(value: float | None) -> str:
    """Return a count, an average of counts at one decimal; "" for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if not math.isfinite(value) or value == round(value) else f"{value:,.1f}"


def whole(value: float | None) -> str:
    """Return a depth or a seed as it is; "" for None."""
    return "" if value is None else str(value)


def clip(text: str, width: int) -> str:
    """Return the text, shortened to `width` characters by an ellipsis where it is longer."""
    return text if len(text) <= width else text[: width - 1] + "…"


def decimals(errors: Iterable[float | None]) -> int:
    """Decimals that leave the smallest error two significant digits, between 0 and 4."""
    known = [e for e in errors if finite(e) and e > 0]
    return min(max(1 - math.floor(math.log10(min(known))), 0), 4) if known else 3
