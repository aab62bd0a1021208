"""Readers of documents, one format a file."""
