"""What is trained: presets and configs, the model built from one, its weights from the seed, its loss."""
