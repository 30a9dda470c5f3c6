"""One training: the loop that every stage of every method goes through."""
