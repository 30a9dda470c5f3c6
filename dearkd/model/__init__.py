"""Networks and losses: pure torch and timm. Knows no file of a run."""
