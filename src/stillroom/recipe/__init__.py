"""Everything that a recipe may say, and reading it."""
