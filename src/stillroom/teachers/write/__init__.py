"""The stage `write`: text that a teacher writes about the owner's documents."""
