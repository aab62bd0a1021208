"""What was kept of the teacher and what was lost, measured on held-out text."""
