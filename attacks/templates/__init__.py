"""Chat templates: programs that come with a model."""
