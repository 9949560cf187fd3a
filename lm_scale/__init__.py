"""lm-scale: one DeepSpeed JSON in, one row you can trust out."""

__version__ = "0.1.0"
