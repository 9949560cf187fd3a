"""The table of all keys that the installed DeepSpeed knows, found in its sources; see `__main__`."""
