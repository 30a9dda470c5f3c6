"""Tables, figures, claims and pages from records. Never imports torch."""
