"""Commands for pair data sets, teachers and students."""
