"""Jobs: each gathers its inputs, does one thing and writes its record last."""
