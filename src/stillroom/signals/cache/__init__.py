"""The teacher cache: signals on disk, addressed by token sequence."""
