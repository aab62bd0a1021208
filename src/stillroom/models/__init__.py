"""Language models in memory: opening, tokenizers, forward passes, devices, families."""
