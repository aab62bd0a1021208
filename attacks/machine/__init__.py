"""The receiving machine's memory is wiped or its clock set back."""
