"""Closed forms of what a model costs: parameters, FLOPs, bytes, and what devices give. No torch."""
