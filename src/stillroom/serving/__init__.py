"""A model to answers, until it is switched off. Knows nothing of training."""
