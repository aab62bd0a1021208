"""Is a file from elsewhere safe to open? Scanners of weights, configs, templates and graphs."""
