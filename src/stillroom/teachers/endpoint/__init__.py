"""A teacher behind an HTTP endpoint: asking it, checking what it answers, and paying for nothing twice.

Nothing else in Stillroom makes requests to a network on its own.
"""
