"""The training objective: inputs, targets and losses."""
