"""Licences and terms: may a model be used so, and what comes with it."""
