"""What a mixture is made of: the power spectral density of each source, and how it is fitted."""
