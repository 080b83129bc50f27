"""How arithmetic is pinned so that the same pair has the same bytes."""
