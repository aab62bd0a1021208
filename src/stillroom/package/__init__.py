"""Exported files and a run's record to a signed package, and its verification. Knows nothing of model internals."""
