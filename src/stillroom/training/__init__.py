"""From a student and signals to trained weights. Knows nothing of where signals came from."""
