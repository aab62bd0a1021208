"""Objectives, one per file, from hidden states and the output matrix."""
