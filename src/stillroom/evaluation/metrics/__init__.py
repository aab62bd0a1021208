"""The metrics, one file each; a file has its metric's name. docs/contributing/metric.md says how to add one."""
