"""Neural FCA: separators that are learnt from mixtures alone."""
