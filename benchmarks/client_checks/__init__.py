"""What each client is asked to do; run by `benchmarks.clients` in an environment of the client's own."""
