"""Stolen, exchanged and forged keys, signatures and roots."""
