"""Pruning, least-squares repair and vocabulary trimming: a smaller network that starts close to its teacher."""
