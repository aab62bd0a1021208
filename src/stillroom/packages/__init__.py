"""A finished run to a signed package: packing, keys, signing, the repository, the bill of materials."""
