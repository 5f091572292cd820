"""Numbers as tables write them: as many digits as their errors deserve."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["clip", "count", "decimals", "fixed", "plus_minus", "power", "significant"]


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
    if value is None or error is None or not math.isfinite(value) or not math.isfinite(error):
        return text
    return f"{text} ± {fixed(error, digits)}"


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


def clip(text: str, width: int) -> str:
    """Return the text, shortened to `width` characters by an ellipsis where it is longer."""
    return text if len(text) <= width else text[: width - 1] + "…"


def decimals(errors: Iterable[float | None]) -> int:
    """Decimals that leave the smallest error two significant digits, between 0 and 4."""
    known = [e for e in errors if e is not None and math.isfinite(e) and e > 0]
    return min(max(1 - math.floor(math.log10(min(known))), 0), 4) if known else 3
