"""Programs for Stillroom's developers. Nothing here is installed."""
