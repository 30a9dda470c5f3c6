"""Training: the one loop that all stages of all methods share."""
