"""Metrics and axes in words."""

from __future__ import annotations

GENERALISATION_GAP = "overfitting_gap"
"""Held-out cross-entropy less that of pairs which the student learns from: what it knows by heart."""
AXIS_LABELS = {
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
"""What stands at an axis, unit and all; `{}` is the protocol's name."""
LINEAR = {
    "heldout_token_match",
    "train_token_match",
    "precision",
    "recall",
    "class_accuracy",
    GENERALISATION_GAP,
}
"""Shares, and what may be zero or less: nothing is small there because it is near zero."""


def axis_label(metric: str, protocol: str) -> str:
    """What stands at a metric's axis, with its unit."""
    return AXIS_LABELS.get(metric, f"{metric.replace('_', ' ')} (no unit)").format(protocol.split(",")[0])
