"""What a user decides: sizes of the front end and of the model, and how to train. Plain values, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ActivationName = Literal["tanh", "relu", "silu", "gelu"]
WindowName = Literal["sine", "hann", "hamming"]


@dataclass(frozen=True)
class STFTSettings:
    """Front end; the defaults are 64 ms and 16 ms at 16 kHz.

    Attributes:
        n_fft: window and transform length in samples.
        hop_length: samples from frame to frame, at most n_fft / 2.
        window: sine, hann or hamming.
    """

    n_fft: int = 1024
    hop_length: int = 256
    window: WindowName = "sine"


@dataclass(frozen=True)
class FrameVAESettings:
    """Sizes of a frame-wise VAE. The defaults are the classic size 513-128-16-128-513.

    Attributes:
        latent_dim: latent dimensions per frame.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        residual: add the input of a hidden layer to its output where both have the same width.
        activation: tanh, relu, silu or gelu.
        dropout: probability in every hidden layer.
    """

    latent_dim: int = 16
    hidden: tuple[int, ...] = (128,)
    residual: bool = False
    activation: ActivationName = "tanh"
    dropout: float = 0.0


@dataclass(frozen=True)
class PrepareSettings:
    """How a corpus is prepared.

    Attributes:
        sample_rate: of the packed recordings, in Hz.
        layout: auto, folder, or the name of a known corpus.
        trim: cut silence from both ends (30 dB below the loudest frame).
        validation: share of the speakers held out where the corpus has no official validation split.
        validation_speakers: file that names speakers to hold out for validation, one a line.
        test_speakers: file that names speakers to hold out for testing, one a line.
        speeds: pack every training recording once more at each of these speeds, such as [0.9, 1.1].
    """

    sample_rate: int = 16000
    layout: str = "auto"
    trim: bool = True
    validation: float = 0.1
    validation_speakers: str | None = None
    test_speakers: str | None = None
    speeds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.sample_rate < 1:
            raise ValueError(f"sample_rate must be positive, got {self.sample_rate}")
        if not 0 <= self.validation <= 1:
            raise ValueError(f"validation must be from 0 to 1, got {self.validation}")
        for speed in self.speeds:
            if not 0.1 <= speed <= 10:
                raise ValueError(f"speeds must be from 0.1 to 10, got {speed}")


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of `fit`.

    Attributes:
        steps: optimiser steps; the learning rate follows one cosine over them.
        batch_frames: STFT frames per step and device.
        segment_frames: consecutive frames that are drawn together; a batch holds batch_frames / segment_frames segments.
        learning_rate: highest learning rate (Adam).
        warmup: share of the steps over which the learning rate rises from zero.
        weight_decay: decoupled weight decay (AdamW).
        beta: weight of the KL term; 1 maximises the ELBO, less buys sound with bits.
        beta_warmup: share of the steps over which beta rises linearly from zero.
        clip_norm: gradients are scaled down to this norm.
        averaging: decay of the exponential average of the weights that is validated and saved; 0 takes the last weights.
        equaliser_db: each drawn segment passes a smooth random equaliser; standard deviation of its lowest cosine in dB.
        validate_every: steps between validations; each also writes a checkpoint.
        patience: validations without a better ELBO before training stops; 0 never stops early.
        log_every: steps between lines of the loss trace.
        seed: of weights, batches and latents.
        precision: as of Lightning's Fabric.
        devices: devices per node.
        nodes: number of machines.
    """

    steps: int = 20000
    batch_frames: int = 1024
    segment_frames: int = 16
    learning_rate: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.0
    beta: float = 1.0
    beta_warmup: float = 0.0
    clip_norm: float = 100.0
    averaging: float = 0.999
    equaliser_db: float = 0.0
    validate_every: int = 500
    patience: int = 0
    log_every: int = 50
    seed: int = 0
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = "32-true"
    devices: int = 1
    nodes: int = 1

    def __post_init__(self) -> None:
        positive = (
            "steps",
            "batch_frames",
            "segment_frames",
            "learning_rate",
            "clip_norm",
            "validate_every",
            "log_every",
            "devices",
            "nodes",
        )
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("warmup", "beta_warmup", "averaging"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be from 0 up to (not including) 1, got {getattr(self, name)}")
        for name in ("weight_decay", "beta", "equaliser_db", "patience"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.batch_frames % self.segment_frames:
            raise ValueError(f"batch_frames ({self.batch_frames}) must be a multiple of segment_frames ({self.segment_frames})")
