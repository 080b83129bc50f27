"""What a data set will cost before it is generated."""
