"""Probability distributions that `torch.distributions` lacks, with their KL divergences, one a file."""

from audiovae.distributions.complex_normal import ComplexNormal

__all__ = ["ComplexNormal"]
