"""From a student and signals to trained weights."""
