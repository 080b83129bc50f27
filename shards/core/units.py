"""Numbers as people write them."""

from __future__ import annotations


def format_bytes(count: float) -> str:
    """A number of bytes in decimal units: `812 B`, `4.6 kB`, `64.7 MB`, `9.2 GB`, `1.7 TB`.

    Args:
        count: bytes, not negative.

    Returns:
        One decimal, or none below a kilobyte.
    """
    if count < 999.5:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1e3
        if count < 999.95:
            return f"{count:.1f} {unit}"
    return f"{count / 1e3:,.1f} TB"
