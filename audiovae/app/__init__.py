"""A page on this machine alone: denoise, look inside, separate, compare, and speak live."""
