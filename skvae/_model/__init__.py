"""The networks and the joint density, which is evaluated here and nowhere else."""
