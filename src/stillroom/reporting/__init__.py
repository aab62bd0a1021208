"""A finished run's summary, report and model card."""
