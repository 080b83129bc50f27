"""Stage one: a teacher generates token sequences, with the noise of each position mapped to its token."""
