"""Training a student on a teacher's signals: loop, losses, optimizer, checkpoints."""
