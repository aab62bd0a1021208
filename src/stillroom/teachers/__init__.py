"""Teachers: opening them, and capturing what they predict."""
