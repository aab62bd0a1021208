"""A GGUF file in a confined process of its own: engine, worker, and the socket between them."""
