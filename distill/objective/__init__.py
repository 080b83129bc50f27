"""What the student learns: states, targets and losses."""
