"""Counts the arithmetic, memory traffic and operations of a batch of pairs from the teacher's architecture alone.

The transformer's matrix products are exact: with the doubled batch of guidance, attention over the cache, and the head.
The memory traffic outside of products and the number of flow map evaluations are round figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from generate_pairs.config import TeacherConfig
from generate_pairs.flow_map.flow_map import GATHER_MIN_VOCAB, GATHER_SHARE
from generate_pairs.teachers.base import Teacher
from generate_pairs.teachers.llamagen.teacher import LlamaGenConfig
from generate_pairs.teachers.var.teacher import VarConfig

EVALUATION_SHARE = 0.5
"""Share of the flow map's steps until a position's token is decided; measured .4 to .7 at 32 steps."""

ACTIVATION_PASSES = 50
"""Reads and writes of a vector of the model's width, per block and position."""

LOGIT_PASSES = 10
"""Reads and writes of the logits by filters and normalisation."""

SCORE_PASSES = 5
"""Reads and writes of the scores per evaluation: product, maximum, softmax (read and write), moments."""

CALLS_PER_BLOCK = 20
CALLS_PER_EVALUATION = 30
"""Approximate operations per transformer block and per evaluation of the flow map."""

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Work:
    """Floating-point operations (a multiply-add counts as two), bytes to and from memory, and launched operations."""

    flops: float
    num_bytes: float
    calls: float


@dataclass(frozen=True)
class StepWork:
    """The work of one AR step: the transformer in the teacher's dtype, then the flow map in float32."""

    transformer: Work
    flow_map: Work


def batch_work(
    family: str, teacher: Teacher, config: TeacherConfig, solver_steps: int, batch_size: int
) -> list[StepWork] | None:
    """The work of each AR step of a batch; None for a family of another package, which cannot be counted here.

    The teacher may be on the meta device.
    """
    count = _TRANSFORMERS.get(family)
    if count is None:
        return None
    item_bytes = FLOAT32_BYTES if config.dtype == "float32" else 2
    transformer = count(teacher.transformer.config, config.guidance_scale, batch_size, item_bytes)
    return [
        StepWork(work, flow_map_work(teacher, config.top_k, solver_steps, batch_size * num_tokens))
        for work, num_tokens in zip(transformer, teacher.layout.tokens_per_step, strict=True)
    ]


def flow_map_work(teacher: Teacher, top_k: int, solver_steps: int, num_rows: int) -> Work:
    """The flow map of `num_rows` positions; of the sampling settings, only top-k is assumed to exclude tokens."""
    vocab_size, num_features = teacher.vocab_size, teacher.codebook_dim + 2
    possible = min(top_k, vocab_size) if top_k else vocab_size
    evaluations = max(1.0, EVALUATION_SHARE * solver_steps)
    is_gathered = vocab_size >= GATHER_MIN_VOCAB and possible * GATHER_SHARE <= vocab_size
    candidates = num_rows * (possible if is_gathered else vocab_size)
    # Both products read gathered rows from memory; an ungathered codebook stays in the processor's cache.
    rows_read = 2 * num_features if is_gathered else 0
    passes = SCORE_PASSES + rows_read
    gathering = candidates * num_features * FLOAT32_BYTES if is_gathered else 0
    return Work(
        flops=evaluations * 4 * candidates * num_features,
        num_bytes=evaluations * passes * candidates * FLOAT32_BYTES + gathering,
        calls=evaluations * CALLS_PER_EVALUATION,
    )


def var_work(config: VarConfig, guidance_scale: float, batch_size: int, item_bytes: int) -> list[Work]:
    """VAR's transformer for each scale; the first scale includes the blocks' modulations, computed once."""
    width, depth = config.width, config.depth
    rows = batch_size * (1 if guidance_scale == 0 else 2)
    block_weights = 4 * width**2 + 2 * width * round(width * config.mlp_ratio)
    modulations = 2 * rows * 6 * width**2 * (1 if config.shared_adaln else depth)
    steps = []
    for step, num_tokens in enumerate(config.layout.tokens_per_step):
        length = config.layout.starts[step + 1]
        # The first scale starts from the class and embeds no latents.
        embedding = 2 * batch_size * num_tokens * config.codebook_dim * width if step else modulations
        last_norm = 2 * rows * 2 * width**2
        products = 2 * rows * num_tokens * block_weights * depth + embedding + last_norm
        steps.append(
            _step(config, rows, batch_size * num_tokens, products, block_weights, num_tokens, length, item_bytes)
        )
    return steps


def llamagen_work(config: LlamaGenConfig, guidance_scale: float, batch_size: int, item_bytes: int) -> list[Work]:
    """LlamaGen's transformer for each token; the first step includes the condition tokens."""
    rows = batch_size * (1 if guidance_scale == 1 else 2)
    layer_weights = 4 * config.width**2 + 3 * config.width * config.ffn_width
    steps = []
    for step in range(config.num_tokens):
        queries = config.num_condition_tokens if step == 0 else 1
        length = config.num_condition_tokens + step
        products = 2 * rows * queries * layer_weights * config.depth
        steps.append(_step(config, rows, batch_size, products, layer_weights, queries, length, item_bytes))
    return steps


def _step(
    config: VarConfig | LlamaGenConfig,
    rows: int,
    num_logits: int,
    products: float,
    block_weights: int,
    queries: int,
    length: int,
    item_bytes: int,
) -> Work:
    """One AR step: `products`, attention over `length` positions, and the head, which has no null-condition rows."""
    attention = 4 * config.width * rows * queries * length * config.depth
    head_weights = config.width * config.vocab_size
    cache = 2 * config.width * rows * length * config.depth
    activations = ACTIVATION_PASSES * config.width * rows * queries * config.depth
    weights = block_weights * config.depth + head_weights
    logits = LOGIT_PASSES * num_logits * config.vocab_size
    return Work(
        flops=products + attention + 2 * num_logits * head_weights,
        num_bytes=item_bytes * (weights + cache + activations) + FLOAT32_BYTES * logits,
        calls=CALLS_PER_BLOCK * config.depth,
    )


_TRANSFORMERS: Mapping[str, Callable[..., list[Work]]] = {"var": var_work, "llamagen": llamagen_work}
