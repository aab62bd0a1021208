"""Programs that measure, and print what they measured as JSON. Never part of a test."""
