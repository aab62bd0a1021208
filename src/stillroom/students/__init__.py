"""A smaller network that already starts close to its teacher."""
