"""The metrics: one file each, called as the metric is. A file here, or an entry point of another package, is all that one needs."""
