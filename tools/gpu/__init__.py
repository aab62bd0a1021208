"""The day with a GPU: what travels to a borrowed machine, what is proved there, and the page that says what came out."""
