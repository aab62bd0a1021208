"""Licences and permissions that do not hold."""
