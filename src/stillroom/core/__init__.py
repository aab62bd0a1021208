"""What every package stands on: errors, files, memory, progress, strict readers."""
