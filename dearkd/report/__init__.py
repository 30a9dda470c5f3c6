"""From records to what the paper shows: tables, figures, claims, pages. Never imports torch."""
