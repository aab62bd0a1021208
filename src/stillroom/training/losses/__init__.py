"""Objectives, one a file, from hidden states and the output matrix. Knows nothing of models or files."""
