"""What a teacher predicts, between capture and training: signals, vocabularies, batches and the cache."""
