"""Priors of the DVAE collection (VAE, DKF, RVAE, VRNN, SRNN, STORN, DSAE) as published: a checkpoint and its .ini file.

Their layers are ours one to one; tables, one a model, say which is which. What else is theirs stands in the settings of
the model that is made: power as the networks' input, exp(logvar / 2) as the scale, a variance of 1e-10 at the least;
their front end; and the peak as the level.

Reference: L. Girin et al., "Dynamical variational autoencoders: a comprehensive review", Foundations and Trends in
    Machine Learning 15(1-2), 2021; X. Bie et al., "Unsupervised speech enhancement using dynamical variational
    autoencoders", IEEE/ACM TASLP 30, 2022.
"""

from __future__ import annotations

import configparser
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audiovae.errors import ModelError
from audiovae.models import DKF, build
from audiovae.prior import AudioVAE
from audiovae.settings import (
    DKFSettings,
    DSAESettings,
    FrameVAESettings,
    ModelSettings,
    RVAESettings,
    SRNNSettings,
    STORNSettings,
    VRNNSettings,
)
from audiovae.stft import STFT

Table = dict[str, list[Tensor]]  # name of one of their tensors: parts of ours that it is, side by side


def import_dvae(checkpoint: str | Path, config: str | Path) -> AudioVAE:
    """The prior that a checkpoint holds, ready for inference.

    Args:
        checkpoint: a file of weights as `torch.save` writes it, of which tensors alone are read; nothing is unpickled.
        config: the .ini file that it was trained with.

    Raises:
        ModelError: one of the two cannot be read, they do not belong together, or the configuration asks for layers
            that our models do not have.
    """
    options = _Config(Path(config))
    name = options.text("Network", "name")
    if name not in _LAYOUTS:
        raise ModelError(config, f"describes a model {name}; those known are {', '.join(_LAYOUTS)}")
    layout = _LAYOUTS[name]
    stft, rate = _front_end(options)
    try:
        vae = build(layout.kind, stft.n_freqs, layout.settings(options))
    except ValueError as error:
        raise ModelError(config, f"describes a model that cannot be built ({error})") from error
    with torch.no_grad():
        _copy(Path(checkpoint), _read(Path(checkpoint)), layout.table(vae), name)
        if isinstance(vae, DKF):
            _halve(vae)
    return AudioVAE(stft, vae, rate, level_rule="peak").eval().requires_grad_(False)


def card_of(prior: AudioVAE, checkpoint: str | Path, config: str | Path) -> str:
    """The model card of what `import_dvae` made of these files."""
    options = _Config(Path(config))
    trim, beta = options.optional("STFT", "trim"), options.optional("Training", "beta")
    trained = [f"trim = {trim} (30 dB)"] * bool(trim) + [f"beta = {beta}"] * bool(beta)
    stft = prior.stft
    told = ", ".join(trained) or "which tells nothing of its training"
    return f"""# {Path(checkpoint).stem}

A {prior.kind} of the DVAE collection: the weights of {Path(checkpoint).name}, whose configuration is
{Path(config).name} ({told}). Their licence, data and scores are those that their authors state.

{prior.sample_rate} Hz, STFT {stft.n_fft}/{stft.hop_length}, {stft.window_name} window; the networks see the power of a
recording divided by its largest absolute sample. Beyond its ends a recording counts as zero here, and as its mirror
image there, which the first and the last {stft.n_fft // stft.hop_length // 2} frames notice.
"""


# The configuration ---------------------------------------------------------------------------------------------------


class _Config:
    """An .ini file whose keys are read by section and name, in any case of letters."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parser = configparser.ConfigParser(interpolation=None)
        try:
            self._parser.read_string(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ModelError(path, f"cannot be read ({error.strerror}); check its name") from error
        except (configparser.Error, UnicodeDecodeError) as error:
            raise ModelError(path, "is not an .ini file; give the one that the checkpoint was trained with") from error

    def optional(self, section: str, name: str) -> str | None:
        return self._parser.get(section, name, fallback=None)

    def text(self, section: str, name: str) -> str:
        if not self._parser.has_section(section):
            raise ModelError(self.path, f"lacks the section [{section}]")
        if not self._parser.has_option(section, name):
            raise ModelError(self.path, f"lacks {name} in [{section}]")
        return self._parser.get(section, name).strip()

    def number(self, section: str, name: str) -> float:
        text = self.text(section, name)
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 <= number < 1e9:
            raise ModelError(self.path, f"{name} in [{section}] must be a number, got {text!r}")
        return number

    def size(self, name: str) -> int:
        (width,) = self.widths(name, n=1)
        return width

    def widths(self, name: str, n: int | None = None) -> tuple[int, ...]:
        """Whole numbers with commas between them, or nothing."""
        text = self.text("Network", name)
        try:
            widths = tuple(int(width) for width in text.split(",")) if text else ()
        except ValueError:
            raise ModelError(self.path, f"{name} must be whole numbers, got {text!r}") from None
        if n is not None and len(widths) != n:
            raise ModelError(self.path, f"{name} must be {n} number{'s' * (n > 1)} here, got {text!r}")
        return widths

    def flag(self, name: str) -> bool:
        text = self.text("Network", name).lower()
        if text not in self._parser.BOOLEAN_STATES:
            raise ModelError(self.path, f"{name} must be True or False, got {text!r}")
        return self._parser.BOOLEAN_STATES[text]

    def same(self, *names: str) -> int:
        """The width that several layers have in common, as those of our models do."""
        sizes = {name: self.size(name) for name in names}
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{name} = {size}" for name, size in sizes.items())
            raise ModelError(self.path, f"has layers of different widths ({told}), which are one width here")
        return sizes[names[0]]

    def check(self, **expected: Any) -> None:
        """Raises ModelError where an option has another value than that which our models have."""
        for name, value in expected.items():
            there = self.text("Network", name)
            here = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            if there.replace(" ", "").lower() != here.lower():
                raise ModelError(self.path, f"{name} is {there or 'empty'}, and can only be {here or 'empty'} here")


def _front_end(options: _Config) -> tuple[STFT, int]:
    rate, percent = options.number("STFT", "fs"), options.number("STFT", "zp_percent")
    length = options.number("STFT", "wlen_sec") * rate
    if percent:
        raise ModelError(options.path, f"zp_percent is {percent:g}: transforms longer than their window are not known")
    if length < 2 or rate != int(rate):
        raise ModelError(options.path, f"fs of {rate:g} Hz and a window of {length:g} samples are no front end")
    n_fft = 2 ** math.ceil(math.log2(length))
    try:
        stft = STFT(n_fft, int(options.number("STFT", "hop_percent") * n_fft), "sine")
    except ValueError as error:
        raise ModelError(options.path, f"describes a front end that cannot be built ({error})") from error
    if options.size("x_dim") != stft.n_freqs:
        raise ModelError(
            options.path, f"x_dim is {options.size('x_dim')}, and a window of {n_fft} has {stft.n_freqs} bins"
        )
    return stft, int(rate)


def _shared(options: _Config, activation: str | None = "tanh") -> dict[str, Any]:
    """Settings that all models have."""
    if activation is not None:
        options.check(activation=activation)
    return {
        "latent_dim": options.size("z_dim"),
        "network_input": "power",
        "posterior_scale": "exp",
        "variance_floor": 1e-10,
    }


def _vae_settings(options: _Config) -> ModelSettings:
    activation: Any = options.text("Network", "activation")
    if activation not in ("tanh", "relu"):
        raise ModelError(options.path, f"activation is {activation}, and can only be tanh or relu here")
    return FrameVAESettings(
        **_shared(options, None), hidden=options.widths("dense_x_z"), residual=False, activation=activation
    )


def _dkf_settings(options: _Config) -> ModelSettings:
    options.check(num_RNN_gx=1, bidir_gx=False, dense_ztm1_g=32, dense_g_z=32)
    return DKFSettings(
        **_shared(options),
        width=options.size("dim_RNN_gx"),
        features=options.size("dense_x_gx"),
        emission=options.widths("dense_z_x"),
    )


def _rvae_settings(options: _Config) -> ModelSettings:
    is_causal = not options.flag("bidir_h")
    options.check(num_RNN_g_x=1, num_RNN_g_z=1, num_RNN_h=1, bidir_g_x=not is_causal)
    options.check(dense_x_gx="", dense_z_gz="", dense_z_h="", dense_h_x="")
    return RVAESettings(
        **_shared(options),
        width=options.same("dim_RNN_g_x", "dim_RNN_g_z", "dim_RNN_h"),
        causal=is_causal,
        head=options.size("dense_g_z") if options.text("Network", "dense_g_z") else 0,
    )


def _storn_settings(options: _Config) -> ModelSettings:
    options.check(num_RNN_g=1, num_RNN_h=1, dense_g_z=(64, 32), dense_z_h=(32, 64))
    return STORNSettings(
        **_shared(options),
        width=options.same("dim_RNN_g", "dim_RNN_h"),
        features=options.same("dense_x_g", "dense_xtm1_h", "dense_h_x"),
    )


def _vrnn_settings(options: _Config) -> ModelSettings:
    options.check(num_RNN=1, dense_z=(32, 64), dense_hx_z="", dense_hz_x="", dense_h_z="")
    width, features = options.size("dim_RNN"), options.size("dense_x")
    return VRNNSettings(**_shared(options), width=width, features=features, zero_start=True)


def _srnn_settings(options: _Config) -> ModelSettings:
    options.check(num_RNN_h=1, num_RNN_g=1, dense_gz_z=(64, 32), dense_hz_z=(64, 32))
    return SRNNSettings(
        **_shared(options),
        width=options.same("dim_RNN_h", "dim_RNN_g"),
        features=options.same("dense_x_h", "dense_hx_g", "dense_hz_x"),
        own_past=options.optional("Training", "ss_start") is not None,  # scheduled sampling
    )


def _dsae_settings(options: _Config) -> ModelSettings:
    options.check(num_RNN_gv=1, num_RNN_gxv=1, num_RNN_gz=1, num_RNN_prior=1)
    options.check(dense_x="", dense_gv_v="", dense_xv_gxv="", dense_gxv_gz="")
    return DSAESettings(
        **_shared(options),
        sequence_dim=options.size("v_dim"),
        width=options.same("dim_RNN_gv", "dim_RNN_gxv", "dim_RNN_gz", "dim_RNN_prior"),
        emission=options.widths("dense_vz_x"),
    )


# The weights ---------------------------------------------------------------------------------------------------------


def _linear(name: str, layer: nn.Linear) -> Table:
    return _joined(name, layer.bias, layer.weight)


def _joined(name: str, bias: Tensor, *weights: Tensor) -> Table:
    """A layer of theirs over inputs that stand side by side, each of which has a matrix of its own here."""
    return {f"{name}.weight": list(weights), f"{name}.bias": [bias]}


def _dense(name: str, layers: nn.Module) -> Table:
    """Their linear layers with an activation after each, in the order of ours."""
    table: Table = {}
    for i, layer in enumerate(layer for layer in layers.modules() if isinstance(layer, nn.Linear)):
        table |= _linear(f"{name}.linear{i}", layer)
    return table


def _heads(name: str, bias: Tensor, *weights: Tensor) -> Table:
    """Mean and log variance: two layers of theirs, one of ours."""
    table: Table = {}
    for i, head in enumerate(("mean", "logvar")):
        table |= _joined(f"{name}_{head}", bias.chunk(2)[i], *(weight.chunk(2)[i] for weight in weights))
    return table


def _recurrent(name: str, layer: nn.LSTM | nn.RNN, swaps: bool = False) -> Table:
    """An LSTM or plain recurrence.

    Args:
        swaps: theirs runs over the frames in the opposite order, so that its two directions are ours swapped.
    """
    table: Table = {}
    for own, tensor in layer.named_parameters():
        is_reverse = own.endswith("_reverse") != swaps
        table[f"{name}.{own.removesuffix('_reverse')}{'_reverse' * is_reverse}"] = [tensor]
    return table


def _vae(vae: Any) -> Table:
    *_, last = vae.encoder
    *_, out = vae.decoder
    return {
        **_dense("mlp_x_z", vae.encoder[:-1]),
        **_heads("inf", last.bias, last.weight),
        **_dense("mlp_z_x", vae.decoder[:-1]),
        **_joined("gen_logvar", vae.observation.bias, out.weight),
    }


def _dkf(vae: Any) -> Table:
    inner, transition = vae.recurrence, vae.transition
    return {
        **_dense("mlp_x_gx", vae.features),
        **_recurrent("rnn_gx", vae.encoder.lstm),
        **_linear("mlp_ztm1_g.linear0", inner.layers_in[0]),
        **_linear("mlp_ztm1_g.linear_last", inner.layers_in[1]),
        **_linear("mlp_g_z.linear0", vae.to_drive),  # see _halve
        **_heads("inf", inner.layers_out[0].bias, inner.layers_out[0].weight),
        **_linear("mlp_gate.linear1", transition.gate[0]),
        **_linear("mlp_gate.linear2", transition.gate[2]),
        **_linear("mlp_z_prop.linear1", transition.proposal[0]),
        **_linear("mlp_z_prop.linear2", transition.proposal[2]),
        **_linear("prior_mean", transition.linear),
        **_linear("prior_logvar.1", transition.variance[1]),
        **_dense("mlp_z_x", vae.decoder[:-1]),
        **_joined("gen_logvar", vae.observation.bias, vae.decoder[-1].weight),
    }


def _halve(vae: DKF) -> None:
    """Theirs applies one matrix to the mean of what z_{t-1} and what x_{t:T} say, W (a + b) / 2, ours one to each."""
    vae.to_drive.weight.mul_(0.5)
    vae.recurrence.mixer.weight.copy_(vae.to_drive.weight)


def _rvae(vae: Any) -> Table:
    inner, width, is_causal = vae.recurrence, vae.settings.width, vae.settings.causal
    of_x = [vae.to_drive.weight] if is_causal else [vae.to_drive.weight[:, width:], vae.to_drive.weight[:, :width]]
    weights = [*of_x, inner.mixer.weight]
    if vae.settings.head:
        layer = inner.layers_out[0]
        heads = {**_joined("mlp_g_z.linear0", vae.to_drive.bias, *weights), **_heads("inf", layer.bias, layer.weight)}
    else:
        heads = _heads("inf", vae.to_drive.bias, *weights)
    return {
        **_recurrent("rnn_g_x", vae.encoder.lstm, swaps=not is_causal),
        **_cell("rnn_g_z", inner.lstm),
        **heads,
        **_recurrent("rnn_h", vae.decoder.lstm),
        **_joined("gen_logvar", vae.observation.bias, vae.to_spectrum.weight),
    }


def _cell(name: str, cell: nn.LSTMCell, *inputs: Tensor) -> Table:
    """One that steps frame by frame here.

    Args:
        inputs: weights of inputs that stand before its own.
    """
    return {
        f"{name}.weight_ih_l0": [*inputs, cell.weight_ih],
        f"{name}.weight_hh_l0": [cell.weight_hh],
        f"{name}.bias_ih_l0": [cell.bias_ih],
        f"{name}.bias_hh_l0": [cell.bias_hh],
    }


def _storn(vae: Any) -> Table:
    split = vae.settings.features
    return {
        **_dense("mlp_x_g", vae.features),
        **_recurrent("rnn_g", vae.encoder.lstm),
        **_dense("mlp_g_z", vae.to_latents[:-1]),
        **_heads("inf", vae.to_latents[-1].bias, vae.to_latents[-1].weight),
        **_dense("mlp_z_h", vae.latent_features),
        **_dense("mlp_xtm1_h", vae.past_features),
        **_recurrent("rnn_h", vae.decoder.lstm),
        "rnn_h.weight_ih_l0": [  # z stands before x_{t-1}
            vae.decoder.lstm.weight_ih_l0[:, split:],
            vae.decoder.lstm.weight_ih_l0[:, :split],
        ],
        **_dense("mlp_h_x", vae.to_spectrum[:-1]),
        **_joined("gen_logvar", vae.observation.bias, vae.to_spectrum[-1].weight),
    }


def _vrnn(vae: Any) -> Table:
    inner, width, spectrum = vae.recurrence, vae.settings.width, vae.to_spectrum.weight
    return {
        **_dense("feature_extractor_x", vae.features),
        **_dense("feature_extractor_z", inner.layers_in),
        **_cell("rnn", inner.lstm, vae.past_to_gates.weight),
        **_heads("inf", vae.to_drive.bias, vae.to_drive.weight, inner.mixer.weight),
        **_heads("prior", vae.to_prior.bias, vae.to_prior.weight),
        **_joined("gen_logvar", vae.observation.bias, spectrum[:, width:], spectrum[:, :width]),  # z before h
    }


def _srnn(vae: Any) -> Table:
    inner = vae.recurrence
    return {
        **_dense("mlp_x_h", vae.past_features),
        **_recurrent("rnn_h", vae.chain.lstm),
        **_dense("mlp_hx_g", vae.features),
        **_recurrent("rnn_g", vae.encoder.lstm),
        **_joined("mlp_gz_z.linear0", vae.to_drive.bias, vae.to_drive.weight, inner.mixer.weight),
        **_linear("mlp_gz_z.linear1", inner.layers_out[0]),
        **_heads("inf", inner.layers_out[1].bias, inner.layers_out[1].weight),
        **_dense("mlp_hz_z", vae.transition[:-1]),
        **_heads("prior", vae.transition[-1].bias, vae.transition[-1].weight),
        **_dense("mlp_hz_x", vae.decoder[:-1]),
        **_joined("gen_logvar", vae.observation.bias, vae.decoder[-1].weight),
    }


def _dsae(vae: Any) -> Table:
    dim, layers = vae.settings.latent_dim, _dense("mlp_vz_x", vae.decoder[:-1])
    first = layers["mlp_vz_x.linear0.weight"][0]
    return {
        **_recurrent("rnn_g_v", vae.sequence_encoder.lstm),
        **_heads("inf_v", vae.to_sequence.bias, vae.to_sequence.weight),
        **_recurrent("rnn_g_xv", vae.encoder.lstm),
        **_recurrent("rnn_g_z", vae.smoother),
        **_heads("inf_z", vae.to_latents.bias, vae.to_latents.weight),
        **_recurrent("rnn_prior", vae.transition.lstm),
        **_heads("prior", vae.to_prior.bias, vae.to_prior.weight),
        **layers,
        "mlp_vz_x.linear0.weight": [first[:, dim:], first[:, :dim]],  # v stands before z
        **_joined("gen_logvar", vae.observation.bias, vae.decoder[-1].weight),
    }


@dataclass(frozen=True)
class _Layout:
    """Of one of their models: what it is here, its settings, and which of its tensors is which of ours."""

    kind: str
    settings: Callable[[_Config], ModelSettings]
    table: Callable[[Any], Table]


_LAYOUTS = {
    "VAE": _Layout("FrameVAE", _vae_settings, _vae),
    "DKF": _Layout("DKF", _dkf_settings, _dkf),
    "RVAE": _Layout("RVAE", _rvae_settings, _rvae),
    "STORN": _Layout("STORN", _storn_settings, _storn),
    "VRNN": _Layout("VRNN", _vrnn_settings, _vrnn),
    "SRNN": _Layout("SRNN", _srnn_settings, _srnn),
    "DSAE": _Layout("DSAE", _dsae_settings, _dsae),
}


def _read(checkpoint: Path) -> dict[str, Tensor]:
    """Tensors by name; the output layer by its older one."""
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(checkpoint, f"cannot be read ({error.strerror or error}); check its name") from error
    except Exception as error:  # whatever a file that is no checkpoint leads torch to
        raise ModelError(
            checkpoint, "is no file of weights alone, and nothing else is read; give a state_dict that torch.save wrote"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("model_state_dict"), dict):
        content = content["model_state_dict"]
    if not (isinstance(content, dict) and content and all(isinstance(tensor, Tensor) for tensor in content.values())):
        raise ModelError(checkpoint, "holds no tensors by name; give a state_dict that torch.save wrote")
    return {str(name).replace("gen_out.", "gen_logvar."): tensor for name, tensor in content.items()}


def _copy(checkpoint: Path, theirs: dict[str, Tensor], table: Table, name: str) -> None:
    if missing := table.keys() - theirs.keys():
        raise ModelError(checkpoint, f"lacks {min(missing)}, which a {name} of this configuration has")
    if unknown := theirs.keys() - table.keys():
        raise ModelError(checkpoint, f"has {min(unknown)}, which no {name} of this configuration has")
    for key, parts in table.items():
        shape = (*parts[0].shape[:-1], sum(part.shape[-1] for part in parts))
        if theirs[key].shape != shape:
            told = f"{key} has shape {tuple(theirs[key].shape)}, and the configuration asks for {shape}"
            raise ModelError(checkpoint, told)
        if not theirs[key].isfinite().all():
            raise ModelError(checkpoint, f"{key} holds values that are NaN or infinite")
        for own, part in zip(parts, theirs[key].split([part.shape[-1] for part in parts], dim=-1), strict=True):
            own.copy_(part)
