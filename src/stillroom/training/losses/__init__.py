"""Objectives, one a file, from hidden states and the output matrix."""
