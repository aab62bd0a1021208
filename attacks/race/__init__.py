"""What was checked is exchanged before it is used."""
