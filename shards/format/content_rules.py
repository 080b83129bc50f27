"""Rules that every pair obeys: the range of tokens, the rule of labels, and noise that follows from its counter.

A hash shows that a file is what was committed; these rules show that its content is pairs of this data set. They
cannot show that a token in range is the one that the noise leads to: only the teacher can, by generating the shard
again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shards.format.noise import gaussian_noise, noise_prefixes
from shards.format.pairs import Pairs, label
from shards.format.spec import Array, PairSpec


def broken_rules(spec: PairSpec, pairs: Pairs, wrong_noise_B: Array) -> Iterator[tuple[str, str]]:
    """Each rule that consecutive pairs (at least one) break: its kind ("tokens", "labels" or "noise") and a message.

    `wrong_noise_B` is the result of `wrong_noise`.
    """
    # Read as unsigned, a negative token is larger than any vocabulary.
    unsigned_BL = pairs.tokens_BL.view(f"u{spec.token_dtype.itemsize}")
    outside_B = unsigned_BL.max(axis=1) >= spec.vocab_size
    mislabelled_B = np.not_equal(pairs.label_B, label(pairs.index_B, spec.num_classes))
    rules = [
        ("tokens", outside_B, f"tokens outside 0 .. {spec.vocab_size - 1}"),
        ("labels", mislabelled_B, f"a label that is not pair_index % {spec.num_classes}"),
        ("noise", wrong_noise_B, f"noise that seed {spec.seed} does not give"),
    ]
    for kind, breaking_B, description in rules:
        if breaking_B.any():
            first = pairs.index_B[np.argmax(breaking_B)]
            yield kind, f"{np.count_nonzero(breaking_B)} pairs, the first of them {first}, hold {description}"


def wrong_noise(spec: PairSpec, pairs: Pairs, complete: bool) -> Array:
    """Which of consecutive pairs (at least one) have noise that differs in any bit from their counter's: (B,) bool.

    With `complete`, all numbers of stored noise are compared, which takes longer than reading the shard. Otherwise the
    first few numbers of each pair are compared, which suffice to distinguish any two pairs.
    """
    first, count = int(pairs.index_B[0]), len(pairs)
    if spec.noise != "stored":
        # The reader regenerated it from the counter and compared its checksum.
        return np.zeros(count, dtype=np.bool_)
    stored = pairs.noise_BLC.view(np.uint16).reshape(count, -1)
    generate = gaussian_noise if complete else noise_prefixes
    expected = generate(spec.seed, first, count, spec.noise_shape).view(np.uint16).reshape(count, -1)
    return (expected != stored[:, : expected.shape[1]]).any(axis=1)
