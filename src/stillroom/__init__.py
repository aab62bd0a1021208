"""Stillroom turns a large language model into a small one that its owner can run, prove and switch off."""
