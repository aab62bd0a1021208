"""A model to answers, until it is switched off."""
