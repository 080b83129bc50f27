"""Commands that look at pair data sets, teachers and students."""
