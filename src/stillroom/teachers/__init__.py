"""Teachers, and what they say of every position. Knows nothing of the student."""
