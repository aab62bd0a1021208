"""Attacks on models, packages and their signatures: one runnable file each, in a folder for each kind."""
