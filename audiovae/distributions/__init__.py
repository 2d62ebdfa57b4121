"""Probability distributions that `torch.distributions` lacks, with their KL divergences, one a file."""

from audiovae.distributions.complex_normal import ComplexNormal
from audiovae.distributions.complex_student_t import ComplexStudentT
from audiovae.distributions.log_dirichlet import LogDirichlet
from audiovae.distributions.point import Point
from audiovae.distributions.power_spherical import PowerSpherical
from audiovae.distributions.spectrogram import LogPowerNormal, ScaledBernoulli
from audiovae.distributions.stepped import SteppedCategorical
from audiovae.distributions.von_mises_fisher import SphereUniform, VonMisesFisher

__all__ = [
    "ComplexNormal",
    "ComplexStudentT",
    "LogDirichlet",
    "LogPowerNormal",
    "Point",
    "PowerSpherical",
    "ScaledBernoulli",
    "SphereUniform",
    "SteppedCategorical",
    "VonMisesFisher",
]
