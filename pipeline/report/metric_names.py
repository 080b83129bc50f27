"""Axis labels of metrics."""

from __future__ import annotations

GENERALISATION_GAP = "overfitting_gap"
"""Held-out cross-entropy minus the cross-entropy on training pairs."""
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
"""Axis label of each metric, with its unit; `{}` is the protocol's name."""
LINEAR = {"heldout_token_match", "train_token_match", "precision", "recall", "class_accuracy", GENERALISATION_GAP}
"""Metrics that never get a logarithmic axis: shares, and values that may be zero or negative."""


def axis_label(metric: str, protocol: str) -> str:
    """Axis label of a metric, with its unit."""
    return AXIS_LABELS.get(metric, f"{metric.replace('_', ' ')} (no unit)").format(protocol.split(",")[0])
