"""A DeepSpeed JSON before anything runs: read, checked, overridden, its `"auto"` filled, its batch solved. No torch."""
