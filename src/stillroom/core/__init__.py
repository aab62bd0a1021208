"""What every package uses: errors, files, memory, progress, strict readers."""
