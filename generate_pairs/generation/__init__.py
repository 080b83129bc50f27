"""The generation job: from a plan to committed shards, and their repair."""
