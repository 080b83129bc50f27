"""Times and speed-ups in tables: without decoding and, in parentheses, with it."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.report.table import MISSING, format_number
from pipeline.run_folder.results import Row, seconds_per_image, speedup, timed_batches


def time_cell(row: Row, batch_size: int, spec: str, *, scale: float = 1.0, missing: str = MISSING) -> str:
    """Seconds per image times `scale`, such as `0.54 (1.21)`."""
    times = (seconds_per_image(row, batch_size, decoding=decoding) for decoding in (False, True))
    return _with_decoding(*(None if time is None else scale * time for time in times), spec=spec, missing=missing)


def speedup_cell(row: Row, rows: Sequence[Row], batch_size: int, *, unit: str = "", missing: str = MISSING) -> str:
    """Speed-up over the teacher, such as `11.5 (5.9)`."""
    factors = (speedup(row, rows, batch_size, decoding=decoding) for decoding in (False, True))
    return _with_decoding(*factors, spec=".1f", unit=unit, missing=missing)


def times_note(rows: Sequence[Row], device: str) -> str:
    """What the times of a table are, and what stands in parentheses; "" if nothing was timed."""
    batches = timed_batches(rows)
    if not batches:
        return ""
    is_decoded = any(seconds_per_image(row, size, decoding=True) is not None for row in rows for size in batches)
    sizes = " and ".join("of one image at a time" if size == 1 else f"of batches of {size}" for size in batches)
    decoding = "in parentheses with" if is_decoded else "without"
    return f"Times and speed-ups over the teacher are {sizes}, on {device}; {decoding} decoding."


def _with_decoding(without: float | None, decoded: float | None, *, spec: str, missing: str, unit: str = "") -> str:
    suffix = "" if without is None or decoded is None else f" ({decoded:{spec}}{unit})"
    return format_number(without, spec, unit=unit, missing=missing) + suffix
