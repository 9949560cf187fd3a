"""What executes a strategy, behind one interface. The only package that imports deepspeed."""
