"""Changes to a signed package's files and to what is listed of them."""
