"""Teachers, and what they say of every position."""
