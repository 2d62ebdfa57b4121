"""Find audio, check it, pack it, draw batches of it."""
