"""The paper's claims: their notation, the judge, and the page for readers."""
