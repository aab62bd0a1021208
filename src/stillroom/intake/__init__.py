"""What comes from elsewhere: is it safe to open, may we use it so, and what do we owe. Knows nothing of the run."""
