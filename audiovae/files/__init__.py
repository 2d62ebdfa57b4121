"""Sound files of any length, rate and channel count, in constant memory: to frames that a model hears, and back."""

from audiovae.files.latents import LatentsFile, decode_file, encode_file, encoded_by, write_latents
from audiovae.files.recording import Block, Recording
from audiovae.files.resynthesis import resynthesize_file
from audiovae.files.stretch import Stretch, stretches

__all__ = [
    "Block",
    "LatentsFile",
    "Recording",
    "Stretch",
    "decode_file",
    "encode_file",
    "encoded_by",
    "resynthesize_file",
    "stretches",
    "write_latents",
]
