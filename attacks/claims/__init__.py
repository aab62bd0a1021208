"""A publisher who signs properly, and claims what is not so."""
