"""Stage one: a teacher walks its own sequence, and every position's noise becomes a token."""
