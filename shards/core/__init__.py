"""What all four packages stand on: errors, callbacks, the settings base class, facts about this host."""
