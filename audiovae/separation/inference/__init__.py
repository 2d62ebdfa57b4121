"""E-steps: how the latents of a deep source are found, given everything else."""
