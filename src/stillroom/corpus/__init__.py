"""Sources of text to packed token sequences, with a ledger of origins. Knows nothing of models' weights."""
