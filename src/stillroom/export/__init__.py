"""A Hugging Face folder to files that devices run. Knows nothing of the teacher."""
