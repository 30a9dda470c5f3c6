"""The paper's claims: their language, the judge, and the page for readers."""
