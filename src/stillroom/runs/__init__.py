"""A run's folder, the records of its stages, and the table of stages."""
