"""Stages on several processes and machines: capture on Ray, training by torch elastic, there too."""
