"""What a checkpoint costs, against torch's own ways and against the machine's limits."""
