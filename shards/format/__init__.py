"""What the bytes of a pair mean; nothing here reads or writes files."""
