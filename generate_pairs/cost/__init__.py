"""The cost of a data set before it is generated."""
