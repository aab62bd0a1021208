"""Attacks on the owner's switch: its state, its lists and its folders."""
