"""Numbers, tables and JSON as people and scripts want to read them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["age", "count", "metrics", "metrics_json", "print_json", "size", "table"]


def size(num_bytes: int) -> str:
    """Bytes in a unit that fits: 1.2 GiB."""
    if num_bytes < 1024:
        return f"{num_bytes} B"
    value, units = num_bytes / 1024, ["PiB", "TiB", "GiB", "MiB", "KiB"]
    while value >= 999.95 and len(units) > 1:
        value /= 1024
        units.pop()
    return f"{value:.1f} {units[-1]}"


def age(seconds: float | None) -> str:
    """Seconds in a unit that fits: 3 min; - if they are not known."""
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def count(number: int, one: str, several: str = "") -> str:
    """A number with its noun: 1 file, 2 files."""
    return f"{number} {one if number == 1 else several or one + 's'}"


def metrics(values: Mapping[str, float]) -> str:
    """Metrics in one cell of a table."""
    return " ".join(f"{name}={value:.5g}" for name, value in values.items()) or "-"


def metrics_json(values: Mapping[str, float]) -> dict[str, Any]:
    """Metrics for JSON, which has no nan: there they are text, as in a manifest."""
    return {name: v if math.isfinite(v) else repr(v) for name, v in values.items()}


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a table; columns are as wide as their widest cell."""
    cells = [head, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        yield "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
