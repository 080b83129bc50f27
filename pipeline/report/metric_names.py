"""Axis labels of metrics, and what the rows and columns of an evaluation mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

GENERALISATION_GAP = "overfitting_gap"
"""Held-out cross-entropy minus the cross-entropy on training pairs."""
AXIS_LABELS = {
    "loss": "loss (weighted sum, no unit)",
    "token_loss": "cross-entropy (nats a token)",
    "embedding_loss": "squared error of codebook rows (no unit)",
    "image_loss": "distance of images (no unit)",
    "gradient_norm": "norm of the gradient (no unit)",
    "learning_rate": "learning rate (no unit)",
    "images_per_second": "images per second",
    "data_wait": "waiting for pairs (share of the time)",
    "peak_memory_bytes": "peak memory of a process",
    "heldout_token_loss": "held-out cross-entropy (nats a token)",
    "heldout_token_match": "held-out token match (share of tokens)",
    "train_token_loss": "training cross-entropy (nats a token)",
    "train_token_match": "training token match (share of tokens)",
    GENERALISATION_GAP: "held-out less training\ncross-entropy (nats a token)",
    "frechet_distance": "Fréchet distance ({} features)",
    "inception_score": "inception score ({} classes)",
    "precision": "precision (share of samples)",
    "recall": "recall (share of real images)",
    "class_accuracy": "class accuracy (share of samples)",
}
"""Axis label of each metric, with its unit; `{}` is the protocol's name."""
LINEAR = {
    "learning_rate",
    "heldout_token_match",
    "train_token_match",
    "precision",
    "recall",
    "class_accuracy",
    GENERALISATION_GAP,
}
"""Metrics that never get a logarithmic axis: shares, schedules, and values that may be zero or negative."""


METHODS = {
    "real": "other real images, compared with the reference as a method is; fewer images have a larger distance",
    "reconstruction": "real images, encoded and decoded by the tokenizer alone",
    "teacher": "the AR model in all its steps, tokens drawn at random",
    "teacher-flow": "the AR model in all its steps, tokens by the flow map, as in the pairs",
    "student-": "the student alone, in N steps",
    "pre-trained-": "the student with its teacher in between, which makes the AR steps between the two numbers",
    "onestep*": "no network: every token drawn by its frequency among the pairs of its class",
    "skip-": "the teacher without its last N AR steps, whose tokens are filled in without a network",
}
"""What each method of an evaluation is; a name that ends with a hyphen is a prefix."""
COLUMNS = {
    "frechet_distance": "to real images, in the features of the protocol; 0 is best",
    "frechet_distance_at_real_images": "the same with only as many images as the row real has, compared as that row is",
    "teacher_distance": "the same to the teacher's own images; the excess over the teacher's value is distillation's",
    "inception_score": "how clear and how varied the classes are, at most the number of classes",
    "precision": "share of images that are near a real one",
    "recall": "share of real images that are near an image of the method",
    "class_accuracy": "share of images that show the requested class",
    "clip_score": "agreement of image and caption; more is better",
    "token_match": "share of tokens that are those of teacher-flow, from the same noise",
}
"""What each score of an evaluation is."""


def describe_methods(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The kinds of methods among an evaluation's rows, and what they are."""
    kinds = dict.fromkeys(kind for row in rows for kind in METHODS if _is_kind(row["method"], kind))
    return [(f"{kind}N" if kind.endswith("-") else kind, METHODS[kind]) for kind in kinds]


def axis_label(metric: str, protocol: str = "") -> str:
    """Axis label of a metric, with its unit; a loss of one timestep is named `token_loss_at_8`."""
    base, _, timestep = metric.partition("_at_")
    label = AXIS_LABELS.get(base, f"{base.replace('_', ' ')} (no unit)").format(protocol.split(",")[0])
    return f"{label}, timestep {timestep}" if timestep else label


def _is_kind(method: str, kind: str) -> bool:
    return method.startswith(kind) if kind.endswith("-") else method == kind
