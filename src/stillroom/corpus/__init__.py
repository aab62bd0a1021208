"""Sources of text to packed token sequences, with a ledger of origins."""
