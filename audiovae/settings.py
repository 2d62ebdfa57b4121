"""What a user decides: sizes of the front end and of the model, and how to train. Plain values, without torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, get_args

LatentName = Literal["gaussian", "von-mises-fisher", "power-spherical", "dirichlet"]
MethodName = Literal["peem", "vem", "mcem", "langevin", "mala", "fast"]
NoiseName = Literal["slow", "nmf", "stationary"]
RoomMethodName = Literal["deep", "fast", "neural", "iva", "ilrma", "fastmnmf2", "fastmnmf2-dp", "fca", "fca-dp", "mvae"]
NeuralName = Literal["NeuralFastFCA", "NeuralFCA"]
LikelihoodName = Literal[
    "complex-gaussian", "complex-student-t", "bernoulli", "squared-error", "gaussian", "categorical"
]
ActivationName = Literal["tanh", "relu", "silu", "gelu"]
DataName = Literal["sound", "array"]
InputName = Literal["log-power", "power"]
ScaleName = Literal["bounded", "exp", "softplus", "softplus-floor", "softplus-variance"]
WindowName = Literal["sine", "hann", "hamming"]
LevelName = Literal["active", "peak"]

LARGEST_SEED = 2**64 - 1
LARGEST_SIZE = 2**16  # of a layer, and of anything else that a model has
LARGEST_RATE = 2**20  # in Hz
LARGEST_BATCH = 2**18  # frames


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
class ModelSettings:
    """What every member of the family has; each adds its sizes.

    Attributes:
        latent_dim: latent dimensions per frame.
        data: what a frame is: "sound", the power of an STFT, of which networks see the standardised logarithm; or
            "array", numbers from 0 to 1 (pixels, a scaled spectrogram), which networks see and likelihoods score as
            they are.
    """

    fixed: ClassVar[Mapping[str, Any]] = {}  # what a class gives no choice of, as every saved config states it
    newer: ClassVar[tuple[str, ...]] = ()  # beside _NEWER

    latent_dim: int = 16
    data: DataName = "sound"

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if each.type == "int":
                _check_sizes(each.name, [value])
            elif each.type == "tuple[int, ...]":
                if not isinstance(value, (tuple, list)):
                    raise ValueError(f"{each.name} must be a list of whole numbers, got {value!r}")
                _check_sizes(each.name, value)
            elif each.name in _CHOICES and value not in _CHOICES[each.name]:
                raise ValueError(f"{each.name} must be one of {', '.join(_CHOICES[each.name])}, got {value!r}")
            elif each.type == "bool" and not isinstance(value, bool):
                raise ValueError(f"{each.name} must be true or false, got {value!r}")
            elif each.name == "labels" and not (
                isinstance(value, Mapping) and all(isinstance(classes, (tuple, list)) for classes in value.values())
            ):
                raise ValueError(f"labels must be lists of classes by name, got {value!r}")


_CHOICES: dict[str, tuple[str, ...]] = {
    "data": get_args(DataName),
    "network_input": get_args(InputName),
    "posterior_scale": get_args(ScaleName),
    "code_activation": ("none", *get_args(ActivationName)),
}


def _check_sizes(name: str, sizes: Sequence[Any]) -> None:
    for size in sizes:
        if not isinstance(size, int) or isinstance(size, bool):
            raise ValueError(f"{name} must be a whole number, got {size!r}")
        if size > LARGEST_SIZE:
            raise ValueError(f"{name} must be at most {LARGEST_SIZE}, got {size}")


@dataclass(frozen=True)
class SoundSettings(ModelSettings):
    """Those of a model of sound with Gaussian latents and no labels.

    Attributes:
        likelihood: of a spectrum given the latents; of arrays bernoulli, squared-error (a variance of one), gaussian (a
            learnt variance) or categorical.
        network_input: what networks see of sound: "log-power", standardised over the training data; or "power" as it
            is, as of the published dynamical VAEs.
        variance_floor: smallest variance of a complex Gaussian, or scale of a Student-t.
        n_values: numbers, evenly from 0 to 1, that a categorical bin of an array can be.
    """

    fixed: ClassVar = {"latent": "gaussian", "dirichlet_concentration": 0.5, "labels": {}}

    likelihood: LikelihoodName = "complex-gaussian"
    n_values: int = 256
    network_input: InputName = "log-power"
    variance_floor: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1e-30 <= self.variance_floor <= 1:
            raise ValueError(f"variance_floor must be from 1e-30 to 1, got {self.variance_floor}")


@dataclass(frozen=True)
class LabelledSettings(SoundSettings):
    """Those of a model of sound that labels may condition.

    Attributes:
        labels: names and classes of the labels that condition the model, such as {"digit": ("0", "1"), "speaker": ("a",
            "b")}.
    """

    fixed: ClassVar = {"latent": "gaussian", "dirichlet_concentration": 0.5}

    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class LatentSettings(LabelledSettings):
    """Those of a model of sound with latents of any family.

    Attributes:
        latent: family of the latents.
        dirichlet_concentration: of the symmetric Dirichlet prior; other families have no use for it.
        posterior_scale: the standard deviation of a Gaussian q(z | x) from an encoder's output h: "bounded" is
            2 sigmoid(h), "exp" exp(h / 2) with h the log variance, "softplus" softplus(h), "softplus-floor"
            softplus(h) + 1e-6, "softplus-variance" the root of softplus(h).
    """

    fixed: ClassVar = {}

    latent: LatentName = "gaussian"
    dirichlet_concentration: float = 0.5
    posterior_scale: ScaleName = "bounded"


@dataclass(frozen=True)
class FrameVAESettings(LatentSettings):
    """Sizes of a frame-wise VAE. The defaults are those of the shipped speech-16k.

    Attributes:
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        residual: add the input of a hidden layer to its output where both have the same width.
        activation: tanh, relu, silu or gelu.
        dropout: probability in every hidden layer.
        phase: the encoder sees the phase of sound too; no separator has that of a source.
    """

    latent_dim: int = 64
    hidden: tuple[int, ...] = (512, 512, 512)
    residual: bool = True
    activation: ActivationName = "silu"
    dropout: float = 0.0
    phase: bool = False


@dataclass(frozen=True)
class AutoencoderSettings(SoundSettings):
    """Sizes of a frame-wise autoencoder: those of a frame-wise VAE.

    Attributes:
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        residual: add the input of a hidden layer to its output where both have the same width.
        activation: tanh, relu, silu or gelu.
        dropout: probability in every hidden layer.
        code_activation: what the code passes on its way to the decoder; none leaves it linear.
        phase: the encoder sees the phase of sound too; no separator has that of a source.
    """

    fixed: ClassVar = {"latent": "point", "dirichlet_concentration": 0.5, "labels": {}}

    latent_dim: int = 64
    likelihood: LikelihoodName = "squared-error"
    hidden: tuple[int, ...] = (512, 512, 512)
    residual: bool = True
    activation: ActivationName = "silu"
    dropout: float = 0.0
    code_activation: Literal["none", "tanh", "relu", "silu", "gelu"] = "none"
    phase: bool = False


@dataclass(frozen=True)
class ContextVAESettings(LatentSettings):
    """Sizes of a VAE whose encoder sees neighbouring frames and whose decoder is frame-wise.

    Attributes:
        width: of all hidden layers.
        kernel_size: frames that a temporal convolution of the encoder combines.
        dilations: of the encoder's temporal convolutions, in frames.
        causal: the encoder sees the past alone.
        decoder_layers: hidden layers of the decoder after its first.
        phase: the encoder sees the phase of sound too; no separator has that of a source.
    """

    latent_dim: int = 64
    width: int = 512
    kernel_size: int = 3
    dilations: tuple[int, ...] = (1, 2, 4)
    causal: bool = False
    decoder_layers: int = 3
    phase: bool = False


@dataclass(frozen=True)
class DynamicVAESettings(LabelledSettings):
    """Sizes of a VAE with context in encoder and decoder and an autoregressive prior.

    Attributes:
        width: of the hidden layers of encoder and decoder.
        kernel_size: frames that a temporal convolution of encoder or decoder combines.
        dilations: of the temporal convolutions of encoder and decoder, in frames.
        causal: encoder and decoder see the past alone, as live streams need it.
        prior_width: of the hidden layers of the prior p(z_t | z_{<t}).
        prior_dilations: of its causal convolutions of three frames each; they say how far it sees back.
    """

    newer: ClassVar = ("causal",)

    latent_dim: int = 64
    width: int = 512
    kernel_size: int = 3
    dilations: tuple[int, ...] = (1, 2, 4)
    causal: bool = False
    prior_width: int = 256
    prior_dilations: tuple[int, ...] = (1, 2, 4, 8)


@dataclass(frozen=True)
class SequenceVAESettings(LatentSettings):
    """Sizes of a VAE with one latent vector for a whole sequence.

    Attributes:
        n_frames: the longest sequence that it can encode and decode, a multiple of 8.
        width: features per frame.
        hidden: width of the layers between all frames and the latents.
        kernel_size: frames that a temporal convolution combines.
        blocks: temporal convolutions at each of the four resolutions of time.
    """

    n_frames: int = 64
    width: int = 128
    hidden: int = 256
    kernel_size: int = 5
    blocks: int = 2


@dataclass(frozen=True)
class LabelVAESettings(ModelSettings):
    """Sizes of a predictor of labels p(y | x, z).

    Attributes:
        labels: name and classes of the one label that is predicted, such as {"digit": ("0", "1")}.
        width: of all hidden layers.
        kernel_size: frames that a temporal convolution combines.
        blocks: temporal convolutions at each resolution of time.
        halvings: how often the resolution of time is halved; 0 where labels are per frame.
        pool: one decision for the whole sequence, from mean and maximum over its frames; else one for every frame.
        dropout: probability between convolutions and heads.
        standard_prior: z ~ N(0, I) before y is known, instead of p(z | x).
    """

    fixed: ClassVar = {"latent": "gaussian", "dirichlet_concentration": 0.5, "likelihood": "complex-gaussian"}

    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    width: int = 128
    kernel_size: int = 5
    blocks: int = 2
    halvings: int = 2
    pool: bool = True
    dropout: float = 0.1
    standard_prior: bool = False


@dataclass(frozen=True)
class DynamicalSettings(SoundSettings):
    """Those of a published dynamical VAE.

    Attributes:
        posterior_scale: see `LatentSettings`; of q(z | x), and of the prior where a network gives it alike (VRNN, SRNN,
            DSAE). Where each latent vector is inferred from the one before, "bounded" and "exp" are compiled.
    """

    posterior_scale: ScaleName = "bounded"


@dataclass(frozen=True)
class RVAESettings(DynamicalSettings):
    """Sizes of a recurrent VAE.

    Attributes:
        causal: the decoder sees the latents up to its own frame, else all of them.
        width: of all LSTMs.
        head: width of a tanh layer before the posterior's parameters; 0 leaves it out.
    """

    causal: bool = True
    width: int = 128
    head: int = 0


@dataclass(frozen=True)
class DKFSettings(DynamicalSettings):
    """Sizes of a deep Kalman filter.

    Attributes:
        width: of the LSTM.
        features: width of the layer between the spectrum and the LSTM.
        emission: widths of the decoder's hidden layers.
    """

    width: int = 128
    features: int = 256
    emission: tuple[int, ...] = (32, 64, 128, 256)


@dataclass(frozen=True)
class STORNSettings(DynamicalSettings):
    """Sizes of a stochastic recurrent network.

    Attributes:
        width: of both LSTMs.
        features: width of the layers next to the spectrum.
    """

    width: int = 128
    features: int = 256


@dataclass(frozen=True)
class VRNNSettings(DynamicalSettings):
    """Sizes of a variational recurrent network.

    Attributes:
        width: of the LSTM.
        features: width of the layer after the spectrum.
        zero_start: the first state is zero, as published; else the LSTM's answer to a frame of zeros.
    """

    width: int = 128
    features: int = 256
    zero_start: bool = False


@dataclass(frozen=True)
class SRNNSettings(DynamicalSettings):
    """Sizes of a stochastic recurrent network with separate deterministic and stochastic chains.

    Attributes:
        width: of both LSTMs.
        features: width of the layers next to the spectrum.
        own_past: the model that needs no past x, for it feeds on its own predictions; see
            `TrainingSettings.scheduled_sampling`.
    """

    width: int = 128
    features: int = 256
    own_past: bool = False


@dataclass(frozen=True)
class DSAESettings(DynamicalSettings):
    """Sizes of a disentangled sequential autoencoder.

    Attributes:
        sequence_dim: dimensions of the latent vector of the whole sequence.
        width: of all recurrent layers.
        emission: widths of the decoder's hidden layers.
    """

    sequence_dim: int = 16
    width: int = 128
    emission: tuple[int, ...] = (32, 64, 128, 256)


MODEL_SETTINGS: dict[str, type[ModelSettings]] = {
    kind.__name__.removesuffix("Settings"): kind
    for kind in (
        FrameVAESettings, AutoencoderSettings, ContextVAESettings, DynamicVAESettings, SequenceVAESettings,
        LabelVAESettings, RVAESettings, DKFSettings, STORNSettings, VRNNSettings, SRNNSettings, DSAESettings,
    )
}  # fmt: skip


_NEWER = (
    "data",
    "network_input",
    "variance_floor",
    "posterior_scale",
    "code_activation",
    "standard_prior",
    "zero_start",
    "n_values",
    "phase",
)  # than some saved configs: not in those that keep the default
_IN_EVERY_CONFIG = ("latent_dim", "latent", "dirichlet_concentration", "likelihood", "labels")  # in this order, first


def settings_to_config(settings: ModelSettings) -> dict[str, Any]:
    """What a saved model's config says of its sizes: all that is chosen, and what its class gives no choice of.

    The hash of a config identifies a model, and latents carry it: what is written does not change with the classes.
    """
    as_before = {each.name for each in dataclasses.fields(settings) if getattr(settings, each.name) == each.default}
    unsaid = as_before & {*_NEWER, *settings.newer}
    fields = {name: value for name, value in {**settings.fixed, **asdict(settings)}.items() if name not in unsaid}
    return {name: fields[name] for name in dict.fromkeys((*_IN_EVERY_CONFIG, *fields))}


def settings_from_config(kind: str, config: Mapping[str, Any]) -> ModelSettings:
    """The settings of a model of some type that a config states.

    Raises:
        ValueError: an unknown type or field, or a choice that its class does not give.
    """
    if kind not in MODEL_SETTINGS:
        raise ValueError(f"the type of the model must be one of {', '.join(MODEL_SETTINGS)}, got {kind!r}")
    settings_class = MODEL_SETTINGS[kind]
    fields = {name: _tuples(value) for name, value in config.items()}
    for name, fixed in settings_class.fixed.items():
        if (found := fields.pop(name, fixed)) != fixed:
            raise ValueError(f"{name} is always {fixed!r} in a model of type {kind}, got {found!r}")
    if unknown := fields.keys() - {field.name for field in dataclasses.fields(settings_class)}:
        raise ValueError(f"a model of type {kind} has no setting {', '.join(sorted(unknown))}")
    return settings_class(**fields)


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class PrepareSettings:
    """How a corpus is prepared.

    Attributes:
        sample_rate: of the packed recordings, in Hz.
        layout: auto, folder, or the name of a known corpus.
        trim: cut silence from both ends (30 dB below the loudest frame).
        channels: mean (one channel is packed) or all, for what is trained on mixtures: all recordings then have as many
            as the first.
        validation: share of the speakers held out where the corpus has no official validation split.
        group: label whose recordings all stand in one split, such as a column of `labels`; default speaker, or
            recording where there is one speaker only.
        validation_speakers: file that names speakers to hold out for validation, one a line.
        test_speakers: file that names speakers to hold out for testing, one a line.
        speeds: pack every training recording once more at each of these speeds, such as [0.9, 1.1].
        labels: CSV or TSV file with a column "file" (paths below the folder) and a column for every label of the
            recordings.
    """

    sample_rate: int = 16000
    layout: str = "auto"
    trim: bool = True
    channels: Literal["mean", "all"] = "mean"
    validation: float = 0.1
    group: str | None = None
    validation_speakers: str | None = None
    test_speakers: str | None = None
    speeds: tuple[float, ...] = ()
    labels: str | None = None

    def __post_init__(self) -> None:
        if self.sample_rate < 1:
            raise ValueError(f"sample_rate must be positive, got {self.sample_rate}")
        if self.sample_rate > LARGEST_RATE:
            raise ValueError(f"sample_rate must be at most {LARGEST_RATE} Hz, got {self.sample_rate}")
        if not 0 <= self.validation <= 1:
            raise ValueError(f"validation must be from 0 to 1, got {self.validation}")
        if self.channels not in ("mean", "all"):
            raise ValueError(f"channels must be mean or all, got {self.channels!r}")
        for speed in self.speeds:
            if not 0.1 <= speed <= 10:
                raise ValueError(f"speeds must be from 0.1 to 10, got {speed}")


@dataclass(frozen=True)
class MixtureSettings:
    """How mixtures are drawn for a separator that is learnt from them.

    Attributes:
        n_sources: speakers, all different.
        n_channels: microphones of a room that are heard, in random order.
        level_db: how far a source may be louder or quieter than the mean, so that two differ by at most twice that.
        snr_db: of the noise of the microphones, white and independent at each: drawn between the two.
    """

    n_sources: int = 2
    n_channels: int = 3
    level_db: float = 2.5
    snr_db: tuple[float, float] = (20.0, 40.0)

    def __post_init__(self) -> None:
        if self.n_sources < 1:
            raise ValueError(f"n_sources must be at least 1, got {self.n_sources}")
        if self.n_channels < 2:
            raise ValueError(f"n_channels must be at least 2, got {self.n_channels}")
        if not 0 <= self.level_db <= 100:
            raise ValueError(f"level_db must be from 0 to 100, got {self.level_db}")
        if len(self.snr_db) != 2 or not -100 <= self.snr_db[0] <= self.snr_db[1] <= 100:
            raise ValueError(f"snr_db must be two numbers from -100 to 100, the smaller first, got {self.snr_db}")


@dataclass(frozen=True)
class NeuralSettings:
    """Sizes of a separator that is learnt from mixtures (neural FCA).

    Attributes:
        type: NeuralFastFCA, whose covariances one matrix diagonalises, or NeuralFCA, any covariances.
        n_sources: speakers, at most, where they begin alike.
        start: what is known of the sources at first: "iva", what independent vector analysis finds; "none".
        encoder: "prior", the prior's own and what the network adds; "own", the network alone.
        train_prior: is the prior trained too? Else it stays as it was given.
        width: of the network.
        kernel_size: of its convolutions over time.
        dilations: of those of each stage.
        stages: how often latents are inferred: after the first, from what the filter of the stage before leaves of each
            source.
        updates: of the spatial model in each stage.
    """

    type: NeuralName = "NeuralFastFCA"
    n_sources: int = 2
    start: Literal["iva", "none"] = "iva"
    encoder: Literal["prior", "own"] = "prior"
    train_prior: bool = False
    width: int = 256
    kernel_size: int = 3
    dilations: tuple[int, ...] = (1, 2, 4)
    stages: int = 2
    updates: int = 3

    def __post_init__(self) -> None:
        for name in ("n_sources", "width", "kernel_size", "stages", "updates"):
            if not 1 <= getattr(self, name) <= LARGEST_SIZE:
                raise ValueError(f"{name} must be from 1 to {LARGEST_SIZE}, got {getattr(self, name)}")
        if not self.dilations or min(self.dilations) < 1:
            raise ValueError(f"dilations must be positive, got {self.dilations}")
        for name, known in (
            ("type", NeuralName),
            ("start", Literal["iva", "none"]),
            ("encoder", Literal["prior", "own"]),
        ):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of `fit`.

    Attributes:
        steps: optimiser steps; the learning rate follows one cosine over them. More than a run had continue it, on the
            cosine of that many from the start.
        batch_frames: STFT frames per step and device.
        segment_frames: consecutive frames that are drawn together; a batch holds batch_frames / segment_frames
            segments.
        learning_rate: highest learning rate (Adam).
        warmup: share of the steps over which the learning rate rises from zero.
        weight_decay: decoupled weight decay (AdamW).
        beta: weight of the KL term; 1 maximises the ELBO, less buys sound with bits.
        beta_warmup: share of the steps (of each cycle) over which beta rises linearly from zero.
        beta_cycles: how often beta starts again from zero; 1 is a plain warm-up.
        free_bits: KL per latent dimension, in nats averaged over a batch, below which a dimension costs this much: no
            reason to collapse it. Where the KL does not split into dimensions it is per frame, latent_dim times as
            much.
        importance_samples: above 1, train the importance-weighted bound of so many samples, with the doubly
            reparameterised gradient.
        reduction: of log p(x | z) over the bins of a frame: their sum, which is the bound, or their mean, as articles
            have it by mistake: the KL then weighs as many times more as there are bins.
        scheduled_sampling: shares of the steps between which a model that feeds on past frames changes over from the
            true ones to its own predictions, such as [0.3, 0.8]; empty keeps the true ones.
        clip_norm: gradients are scaled down to this norm.
        averaging: decay of the exponential average of the weights that is validated and saved; 0 takes the last
            weights.
        equaliser_db: each drawn segment passes a smooth random equaliser; standard deviation of its lowest cosine in
            dB.
        validate_every: steps between validations; each also writes a checkpoint.
        patience: validations without a better ELBO before training stops; 0 never stops early.
        log_every: steps between lines of the loss trace.
        seed: of weights, batches and latents.
        precision: as of Lightning's Fabric.
        devices: devices per node.
        nodes: number of machines.
    """

    steps: int = 10000
    batch_frames: int = 1024
    segment_frames: int = 16
    learning_rate: float = 3e-3
    warmup: float = 0.05
    weight_decay: float = 0.0
    beta: float = 1.0
    beta_warmup: float = 0.0
    beta_cycles: int = 1
    free_bits: float = 0.0
    importance_samples: int = 1
    reduction: Literal["sum", "mean"] = "sum"
    scheduled_sampling: tuple[float, ...] = ()
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
            "beta_cycles",
            "importance_samples",
            "validate_every",
            "log_every",
            "devices",
            "nodes",
        )
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed must be from 0 to 2^64 - 1, got {self.seed}")
        if self.batch_frames * self.importance_samples > LARGEST_BATCH:
            raise ValueError(
                f"batch_frames times importance_samples must be at most {LARGEST_BATCH}, got "
                f"{self.batch_frames * self.importance_samples}: less memory, and as good with more steps"
            )
        if self.equaliser_db > 100:
            raise ValueError(f"equaliser_db must be at most 100, got {self.equaliser_db}")
        for name in ("warmup", "beta_warmup", "averaging"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be from 0 up to (not including) 1, got {getattr(self, name)}")
        for name in ("weight_decay", "beta", "free_bits", "equaliser_db", "patience"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.reduction not in ("sum", "mean"):
            raise ValueError(f"reduction must be sum or mean, got {self.reduction!r}")
        if self.importance_samples > 1 and (
            self.beta != 1 or self.beta_warmup or self.free_bits or self.reduction != "sum"
        ):
            raise ValueError(
                "importance_samples above 1 trains a bound of its own: leave beta at 1, without beta_warmup or "
                "free_bits, and reduction at sum"
            )
        if self.scheduled_sampling and not (
            len(self.scheduled_sampling) == 2 and 0 <= self.scheduled_sampling[0] < self.scheduled_sampling[1] <= 1
        ):
            raise ValueError(
                f"scheduled_sampling must be two rising shares of the steps, got {self.scheduled_sampling}"
            )
        if self.batch_frames % self.segment_frames:
            raise ValueError(
                f"batch_frames ({self.batch_frames}) must be a multiple of segment_frames ({self.segment_frames})"
            )
