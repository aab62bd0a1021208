"""What was kept and what was lost. Knows nothing of how the student was made."""
