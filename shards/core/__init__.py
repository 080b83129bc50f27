"""What every package needs: exceptions, callback types, the base class of settings, facts about this host."""
