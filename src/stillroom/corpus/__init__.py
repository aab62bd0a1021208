"""Sources of text to packed token sequences, with a record of origins."""
