"""The verbs: each job gathers its inputs, does one thing and writes its record last."""
