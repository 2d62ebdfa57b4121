"""Speech out of noise: a prior of clean speech, a model of the noise fitted to the noisy recording, and inference of both."""

from audiovae.separation.e_step import Draws, EStep
from audiovae.separation.energy import Energy, LatentEnergy
from audiovae.separation.enhancement import Enhancer, Separation, Separator
from audiovae.separation.files import NoisyFile, enhance_file, enhance_files, groups_by_length
from audiovae.separation.methods import METHODS, enhancer
from audiovae.separation.mixture import Mixture
from audiovae.separation.noise import NMFNoise, NoiseModel, SlowNoise, StationaryNoise
from audiovae.separation.point_estimate import PointEstimate
from audiovae.separation.sampling import MarkovChain
from audiovae.separation.variational import FreePosterior

__all__ = [
    "METHODS",
    "Draws",
    "EStep",
    "Energy",
    "Enhancer",
    "FreePosterior",
    "LatentEnergy",
    "MarkovChain",
    "Mixture",
    "NMFNoise",
    "NoiseModel",
    "NoisyFile",
    "PointEstimate",
    "Separation",
    "Separator",
    "SlowNoise",
    "StationaryNoise",
    "enhance_file",
    "enhance_files",
    "enhancer",
    "groups_by_length",
]
