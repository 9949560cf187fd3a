"""What a training loop needs around its engine: schedules, limits, the meter, checkpoints, samples, the record."""
