"""Mixtures taken apart: sources with a spatial model, fitted to each recording alone by expectation maximisation."""

from audiovae.separation.counting import count_sources
from audiovae.separation.em import EMSettings, Separator
from audiovae.separation.files import (
    Enhanced,
    FirstBlock,
    NoisyFile,
    enhance_file,
    enhance_files,
    first_block,
    groups_by_length,
)
from audiovae.separation.filters import Filters, least_squares, wiener
from audiovae.separation.inference.amortised import Amortised
from audiovae.separation.inference.e_step import Draws, EStep
from audiovae.separation.inference.energy import Energy, LatentEnergy, LatentPrior
from audiovae.separation.inference.markov_chain import MarkovChain
from audiovae.separation.inference.point_estimate import PointEstimate
from audiovae.separation.inference.variational import FreePosterior
from audiovae.separation.iva import image_start, iva, told_by
from audiovae.separation.methods import METHODS, enhance, enhancer
from audiovae.separation.mixture import Mixture
from audiovae.separation.neural.separators import NeuralFastFCA, NeuralFCA, NeuralSeparator, build_separator
from audiovae.separation.room_files import FirstRoomBlock, RoomFile, TakenApart, separate_file, separate_files
from audiovae.separation.rooms import ROOM_METHODS, fast_mnmf2, separate, separator, shipped_model
from audiovae.separation.separation import Separation
from audiovae.separation.sources.deep import DeepSettings, DeepSource
from audiovae.separation.sources.envelope import Envelope
from audiovae.separation.sources.floor import Floor
from audiovae.separation.sources.nmf import NMF
from audiovae.separation.sources.slow import SlowBands
from audiovae.separation.sources.source import Finding, ShallowSource, Source
from audiovae.separation.sources.stationary import Stationary
from audiovae.separation.spatial.demixing import Demixing
from audiovae.separation.spatial.full_rank import FullRank, FullRankPair, full_rank
from audiovae.separation.spatial.joint_diagonal import JointDiagonal
from audiovae.separation.spatial.single_channel import SingleChannel
from audiovae.separation.spatial.spatial import Spatial, View
from audiovae.separation.starts import Beginning, even_start, quiet_start
from audiovae.separation.streaming import Stream, stream

__all__ = [
    "METHODS",
    "NMF",
    "ROOM_METHODS",
    "Amortised",
    "Beginning",
    "DeepSettings",
    "DeepSource",
    "Demixing",
    "Draws",
    "EMSettings",
    "EStep",
    "Energy",
    "Enhanced",
    "Envelope",
    "Filters",
    "Finding",
    "FirstBlock",
    "FirstRoomBlock",
    "Floor",
    "FreePosterior",
    "FullRank",
    "FullRankPair",
    "JointDiagonal",
    "LatentEnergy",
    "LatentPrior",
    "MarkovChain",
    "Mixture",
    "NeuralFCA",
    "NeuralFastFCA",
    "NeuralSeparator",
    "NoisyFile",
    "PointEstimate",
    "RoomFile",
    "Separation",
    "Separator",
    "ShallowSource",
    "SingleChannel",
    "SlowBands",
    "Source",
    "Spatial",
    "Stationary",
    "Stream",
    "TakenApart",
    "View",
    "build_separator",
    "count_sources",
    "enhance",
    "enhance_file",
    "enhance_files",
    "enhancer",
    "even_start",
    "fast_mnmf2",
    "first_block",
    "full_rank",
    "groups_by_length",
    "image_start",
    "iva",
    "least_squares",
    "quiet_start",
    "separate",
    "separate_file",
    "separate_files",
    "separator",
    "shipped_model",
    "stream",
    "told_by",
    "wiener",
]
