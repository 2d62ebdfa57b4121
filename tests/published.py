"""Checkpoints of the layout of the DVAE collection: names and shapes of its layers, and its .ini files."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import nn

F, Z, V, H, D = 33, 3, 2, 5, 6  # bins, latents, latents of a sequence, states, features

STFT_SECTION = "[STFT]\nwlen_sec = 4e-3\nhop_percent = 0.25\nfs = 16000\nzp_percent = 0\ntrim = True\n"
NETWORKS = {
    "VAE": f"name = VAE\nactivation = tanh\ndense_x_z = {D},{H}",
    "DKF": f"""name = DKF\nactivation = tanh\ndense_x_gx = {D}\ndim_RNN_gx = {H}\nnum_RNN_gx = 1\nbidir_gx = False
dense_ztm1_g = 32\ndense_g_z = 32\ndense_z_x = 4,{D}""",
    "RVAE": f"""name = RVAE\nactivation = tanh\ndense_x_gx = \ndim_RNN_g_x = {H}\nnum_RNN_g_x = 1\nbidir_g_x = False
dense_z_gz =\ndim_RNN_g_z = {H}\nnum_RNN_g_z = 1\ndense_g_z = \ndense_z_h = \ndim_RNN_h = {H}\nnum_RNN_h = 1
bidir_h = False\ndense_h_x = """,
    "STORN": f"""name = STORN\nactivation = tanh\ndense_x_g = {D}\ndim_RNN_g = {H}\nnum_RNN_g = 1\ndense_g_z = 64,32
dense_z_h = 32,64\ndense_xtm1_h = {D}\ndim_RNN_h = {H}\nnum_RNN_h = 1\ndense_h_x = {D}""",
    "VRNN": f"""name = VRNN\nactivation = tanh\ndense_x = {D}\ndense_z = 32, 64\ndense_hx_z =\ndense_hz_x =\ndense_h_z =
dim_RNN = {H}\nnum_RNN = 1""",
    "SRNN": f"""name = SRNN\nactivation = tanh\ndense_x_h = {D}\ndim_RNN_h = {H}\nnum_RNN_h = 1\ndense_hx_g = {D}
dim_RNN_g = {H}\nnum_RNN_g = 1\ndense_gz_z = 64,32\ndense_hz_x = {D}\ndense_hz_z = 64,32""",
    "DSAE": f"""name = DSAE\nv_dim = {V}\nactivation = tanh\ndense_x =\ndim_RNN_gv = {H}\nnum_RNN_gv = 1\ndense_gv_v =
dense_xv_gxv =\ndim_RNN_gxv = {H}\nnum_RNN_gxv = 1\ndense_gxv_gz =\ndim_RNN_gz = {H}\nnum_RNN_gz = 1
dim_RNN_prior = {H}\nnum_RNN_prior = 1\ndense_vz_x = 4,{D}""",
}
NETWORKS["RVAE, not causal"] = NETWORKS["RVAE"].replace("= False", "= True")
NETWORKS["RVAE, head"] = NETWORKS["RVAE, not causal"].replace("dense_g_z = ", "dense_g_z = 7")
NETWORKS["SRNN, own past"] = NETWORKS["SRNN"]


def config_of(case: str) -> str:
    training = "beta = 1e-2\n" + "ss_start = 50\nss_end = 150\n" * (case == "SRNN, own past")
    network = f"{NETWORKS[case]}\nx_dim = {F}\nz_dim = {Z}\ndropout_p = 0\n"
    return f"#!/usr/bin/env python3\n\n{STFT_SECTION}\n[Network]\n{network}\n[Training]\n{training}"


# Names and layers as published ---------------------------------------------------------------------------


BOTH = {"bidirectional": True}
# A tuple: linear layers of these widths, each with an activation; a list: one linear layer; a number: mean and logvar.
LAYERS: dict[str, dict[str, Any]] = {
    "VAE": {"mlp_x_z": (F, D, H), "inf": H, "mlp_z_x": (Z, H, D), "gen_logvar": [D, F]},
    "DKF": {
        "mlp_x_gx": (F, D),
        "rnn_gx": nn.LSTM(D, H),
        "mlp_ztm1_g": (Z, 32),
        "mlp_ztm1_g.linear_last": [32, H],
        "mlp_g_z": (H, 32),
        "inf": 32,
        **{f"{name}.linear{i}": [Z, Z] for name in ("mlp_gate", "mlp_z_prop") for i in (1, 2)},
        "prior_mean": [Z, Z],
        "prior_logvar.1": [Z, Z],
        "mlp_z_x": (Z, 4, D),
        "gen_logvar": [D, F],
    },
    "RVAE": {
        "rnn_g_x": nn.LSTM(F, H),
        "rnn_g_z": nn.LSTM(Z, H),
        "inf": 2 * H,
        "rnn_h": nn.LSTM(Z, H),
        "gen_out": [H, F],
    },
    "RVAE, not causal": {
        "rnn_g_x": nn.LSTM(F, H, **BOTH),
        "rnn_g_z": nn.LSTM(Z, H),
        "inf": 3 * H,
        "rnn_h": nn.LSTM(Z, H, **BOTH),
        "gen_out": [2 * H, F],
    },
    "STORN": {
        "mlp_x_g": (F, D),
        "rnn_g": nn.LSTM(D, H),
        "mlp_g_z": (H, 64, 32),
        "inf": 32,
        "mlp_z_h": (Z, 32, 64),
        "mlp_xtm1_h": (F, D),
        "rnn_h": nn.LSTM(64 + D, H),
        "mlp_h_x": (H, D),
        "gen_logvar": [D, F],
    },
    "VRNN": {
        "feature_extractor_x": (F, D),
        "feature_extractor_z": (Z, 32, 64),
        "inf": D + H,
        "prior": H,
        "gen_out": [64 + H, F],
        "rnn": nn.LSTM(D + 64, H),
    },
    "SRNN": {
        "mlp_x_h": (F, D),
        "rnn_h": nn.LSTM(D, H),
        "mlp_hx_g": (H + F, D),
        "rnn_g": nn.LSTM(D, H),
        "mlp_gz_z": (H + Z, 64, 32),
        "inf": 32,
        "mlp_hz_z": (H + Z, 64, 32),
        "prior": 32,
        "mlp_hz_x": (H + Z, D),
        "gen_logvar": [D, F],
    },
    "DSAE": {
        "rnn_g_v": nn.LSTM(F, H, **BOTH),
        "inf_v_mean": [2 * H, V],
        "inf_v_logvar": [2 * H, V],
        "rnn_g_xv": nn.LSTM(F + V, H, **BOTH),
        "rnn_g_z": nn.RNN(2 * H, H),
        "inf_z": H,
        "rnn_prior": nn.LSTM(Z, H),
        "prior": H,
        "mlp_vz_x": (V + Z, 4, D),
        "gen_out": [D, F],
    },
}
LAYERS["RVAE, head"] = {**LAYERS["RVAE, not causal"], "mlp_g_z": (3 * H, 7), "inf": 7}
LAYERS["SRNN, own past"] = LAYERS["SRNN"]


def shapes_of(case: str) -> dict[str, tuple[int, ...]]:
    """Of the tensors of a checkpoint, by their published names."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, n_in: int, n_out: int) -> None:
        shapes.update({f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)})

    for name, layer in LAYERS[case].items():
        if isinstance(layer, tuple):
            for i, widths in enumerate(itertools.pairwise(layer)):
                linear(f"{name}.linear{i}", *widths)
        elif isinstance(layer, list):
            linear(name, *layer)
        elif isinstance(layer, int):
            linear(f"{name}_mean", layer, Z)
            linear(f"{name}_logvar", layer, Z)
        else:
            shapes.update({f"{name}.{own}": tuple(tensor.shape) for own, tensor in layer.named_parameters()})
    return shapes


def checkpoint_of(case: str, folder: Path, is_deaf: bool = False) -> tuple[Path, Path]:
    """Weights that are large enough for every layer to count, and the configuration.

    Args:
        is_deaf: the last bin has a variance below the floor.
    """
    generator = torch.Generator().manual_seed(7)
    weights = {name: 0.4 * torch.randn(shape, generator=generator) for name, shape in shapes_of(case).items()}
    out = next(name.removesuffix(".bias") for name in weights if name in ("gen_out.bias", "gen_logvar.bias"))
    if is_deaf:
        weights[f"{out}.weight"][-1], weights[f"{out}.bias"][-1] = 0.0, -60.0
    torch.save(weights, folder / "model.pt")
    (folder / "config.ini").write_text(config_of(case))
    return folder / "model.pt", folder / "config.ini"
