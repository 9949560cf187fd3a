"""One value as people read it. The only place that rounds."""

from __future__ import annotations

import re
from typing import Any

UNKNOWN = "-"
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def whole(value: int | None) -> str:
    """With separators."""
    return UNKNOWN if value is None else f"{value:,}"


def fixed(value: float | None, digits: int) -> str:
    """With this many digits after the point."""
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def number(value: float | None, scale: float = 1) -> str:
    """At least three significant digits; what is too small for two decimals says so instead of looking like zero."""
    if value is None:
        return UNKNOWN
    scaled = value * scale
    if abs(scaled) >= 100 or scaled == 0:
        return f"{scaled:,.0f}"
    return f"{scaled:#.3g}".rstrip(".") if abs(scaled) >= 0.01 else "<0.01"


def significant(value: float | None, digits: int = 4) -> str:
    """`digits` significant digits, and every digit before the point."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:#.{digits}g}".rstrip(".")


def percent(value: float | None) -> str:
    """A share as a percentage; a small one that is not zero does not look like it."""
    if value is None:
        return UNKNOWN
    return f"{value:.0%}" if value >= 0.1 or value == 0 else f"{value:.1%}" if value >= 0.0005 else "<0.1%"


def power(size: float) -> int:
    """The largest power of 1024 with a name in `UNITS` that leaves at least 1."""
    return next((power for power in range(len(UNITS) - 1) if size < 1024 ** (power + 1)), len(UNITS) - 1)


def size(value: int | None) -> str:
    """Bytes in the unit that leaves at least 1."""
    if value is None:
        return UNKNOWN
    return f"{number(value, 1 / 1024 ** power(value))} {UNITS[power(value)]}"


def of_key(key: str, value: Any) -> str:
    """The value of any row key."""
    if value is None:
        return UNKNOWN
    if isinstance(value, list):
        return ",".join(flag["code"] for flag in value) or UNKNOWN
    if isinstance(value, bool):
        return str(value).lower()
    if key.endswith("_bytes"):
        return size(value)
    if isinstance(value, int):
        return str(value) if key == "seed" else f"{value:,}"
    if isinstance(value, float):
        exact = key.endswith("_loss") or key.startswith("delta_loss")
        return f"{value:.4f}" if exact else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return clean(value)


def clean(text: str | None) -> str:
    """One line without control characters: what a file says must not steer the terminal."""
    if text is None:
        return UNKNOWN
    return "".join(letter if letter.isprintable() else " " for letter in text).strip() or UNKNOWN


def markdown(text: str) -> str:
    """Text that Markdown shows as it is."""
    escaped = re.sub(r"([\\|*`\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", text)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
