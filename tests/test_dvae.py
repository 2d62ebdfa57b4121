"""Priors of the DVAE collection: checkpoints of its layout, made here, against its equations, written down here."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn
from torch.nn import functional

from audiovae import AudioVAE, elbo
from audiovae.cli.main import main
from audiovae.dvae import card_of, import_dvae
from audiovae.errors import ModelError

RATE = 16000
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


# The layout: names and layers as published ---------------------------------------------------------------------------


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


def checkpoint_of(case: str, folder: Path) -> tuple[Path, Path]:
    """Weights that are large enough for every layer to count, a last bin below the floor, and the configuration."""
    generator = torch.Generator().manual_seed(7)
    weights = {name: 0.4 * torch.randn(shape, generator=generator) for name, shape in shapes_of(case).items()}
    out = next(name.removesuffix(".bias") for name in weights if name in ("gen_out.bias", "gen_logvar.bias"))
    weights[f"{out}.weight"][-1], weights[f"{out}.bias"][-1] = 0.0, -60.0
    torch.save(weights, folder / "model.pt")
    (folder / "config.ini").write_text(config_of(case))
    return folder / "model.pt", folder / "config.ini"


# The equations: axes are frame, batch, channel -----------------------------------------------------------------------


class Published:
    """Parts of a published model by the names of its weights, in double precision."""

    def __init__(self, case: str, checkpoint: Path) -> None:
        self.is_own = case == "SRNN, own past"
        loaded = torch.load(checkpoint, weights_only=True)
        self.weights = {name: tensor.double() for name, tensor in loaded.items()}
        self.recurrences: dict[str, Any] = {}
        for name, layer in LAYERS[case].items():
            if isinstance(layer, nn.Module):
                self.recurrences[name] = copy.deepcopy(layer).double()
                own = {key.removeprefix(f"{name}."): w for key, w in self.weights.items() if key.startswith(f"{name}.")}
                self.recurrences[name].load_state_dict(own)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def dense(self, name: str, x: Tensor) -> Tensor:
        i = 0
        while f"{name}.linear{i}.weight" in self.weights:
            x, i = torch.tanh(self.linear(f"{name}.linear{i}", x)), i + 1
        return x

    def heads(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(f"{name}_mean", x), self.linear(f"{name}_logvar", x)

    def output(self, x: Tensor) -> Tensor:
        return self.linear("gen_out" if "gen_out.weight" in self.weights else "gen_logvar", x).exp()

    def run(self, name: str, x: Tensor, backwards: bool = False) -> Tensor:
        layer = self.recurrences[name]
        return layer(x.flip(0))[0].flip(0) if backwards else layer(x)[0]


Posterior = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def before(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x[:1]), x[:-1]])


def sampled(mean: Tensor, logvar: Tensor, noise: Tensor | None) -> Tensor:
    assert noise is not None
    return mean + torch.exp(0.5 * logvar) * noise


def drawn(of: Posterior, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Z frame by frame, mean and log variance: `of` gives them from z_{t-1} and t."""
    z, steps = torch.zeros_like(noise[0]), []
    for t in range(len(noise)):
        mean, logvar = of(z, t)
        z = sampled(mean, logvar, noise[t])
        steps.append((z, mean, logvar))
    z, mean, logvar = (torch.stack(parts) for parts in zip(*steps, strict=True))
    return z, mean, logvar


Found = dict[str, Tensor]  # variance y; mean and log variance of the posterior, and of the prior where not N(0, I)


def vae(p: Published, x: Tensor, noise: Tensor, _: Tensor | None) -> Found:
    mean, logvar = p.heads("inf", p.dense("mlp_x_z", x))
    return {"y": p.output(p.dense("mlp_z_x", sampled(mean, logvar, noise))), "mean": mean, "logvar": logvar}


def dkf(p: Published, x: Tensor, noise: Tensor, _: Tensor | None) -> Found:
    g = p.run("rnn_gx", p.dense("mlp_x_gx", x), backwards=True)

    def of(z: Tensor, t: int) -> tuple[Tensor, Tensor]:
        u = torch.tanh(p.linear("mlp_ztm1_g.linear_last", p.dense("mlp_ztm1_g", z)))
        return p.heads("inf", p.dense("mlp_g_z", (u + g[t]) / 2))

    z, mean, logvar = drawn(of, noise)
    past = before(z)
    gate = torch.sigmoid(p.linear("mlp_gate.linear2", torch.relu(p.linear("mlp_gate.linear1", past))))
    proposed = p.linear("mlp_z_prop.linear2", torch.relu(p.linear("mlp_z_prop.linear1", past)))
    mean_p = (1 - gate) * p.linear("prior_mean", past) + gate * proposed
    logvar_p = torch.log(functional.softplus(p.linear("prior_logvar.1", torch.relu(proposed))))
    y = p.output(p.dense("mlp_z_x", z))
    return {"y": y, "mean": mean, "logvar": logvar, "mean_p": mean_p, "logvar_p": logvar_p}


def rvae(p: Published, x: Tensor, noise: Tensor, _: Tensor | None) -> Found:
    g, states = p.run("rnn_g_x", x, backwards=True), [None]

    def of(z: Tensor, t: int) -> tuple[Tensor, Tensor]:
        g_z, states[0] = p.recurrences["rnn_g_z"](z.unsqueeze(0), states[0])
        return p.heads("inf", p.dense("mlp_g_z", torch.cat([g[t], g_z[0]], -1)))

    z, mean, logvar = drawn(of, noise)
    return {"y": p.output(p.run("rnn_h", z)), "mean": mean, "logvar": logvar}


def storn(p: Published, x: Tensor, noise: Tensor, _: Tensor | None) -> Found:
    mean, logvar = p.heads("inf", p.dense("mlp_g_z", p.run("rnn_g", p.dense("mlp_x_g", x))))
    z = sampled(mean, logvar, noise)
    inputs = torch.cat([p.dense("mlp_z_h", z), p.dense("mlp_xtm1_h", before(x))], -1)
    return {"y": p.output(p.dense("mlp_h_x", p.run("rnn_h", inputs))), "mean": mean, "logvar": logvar}


def vrnn(p: Published, x: Tensor, noise: Tensor, _: Tensor | None) -> Found:
    h, state, steps = x.new_zeros(x.shape[1], H), None, []
    for t in range(len(x)):
        of_x = p.dense("feature_extractor_x", x[t])
        mean, logvar = p.heads("inf", torch.cat([of_x, h], -1))
        of_z = p.dense("feature_extractor_z", sampled(mean, logvar, noise[t]))
        mean_p, logvar_p = p.heads("prior", h)
        y = p.output(torch.cat([of_z, h], -1))
        steps.append({"y": y, "mean": mean, "logvar": logvar, "mean_p": mean_p, "logvar_p": logvar_p})
        out, state = p.recurrences["rnn"](torch.cat([of_x, of_z], -1).unsqueeze(0), state)
        h = out[0]
    return {name: torch.stack([step[name] for step in steps]) for name in steps[0]}


def srnn(p: Published, x: Tensor, noise: Tensor, _: Tensor | None) -> Found:
    h = p.run("rnn_h", p.dense("mlp_x_h", before(x)))
    g = p.run("rnn_g", p.dense("mlp_hx_g", torch.cat([h, x], -1)), backwards=True)
    z, mean, logvar = drawn(lambda z, t: p.heads("inf", p.dense("mlp_gz_z", torch.cat([g[t], z], -1))), noise)
    if p.is_own:  # what is generated feeds on y, what is inferred on x
        state, y, states = None, torch.zeros_like(x[0]), []
        for t in range(len(x)):
            out, state = p.recurrences["rnn_h"](p.dense("mlp_x_h", y).unsqueeze(0), state)
            y = p.output(p.dense("mlp_hz_x", torch.cat([out[0], z[t]], -1)))
            states.append(out[0])
        h = torch.stack(states)
    mean_p, logvar_p = p.heads("prior", p.dense("mlp_hz_z", torch.cat([h, before(z)], -1)))
    y = p.output(p.dense("mlp_hz_x", torch.cat([h, z], -1)))
    return {"y": y, "mean": mean, "logvar": logvar, "mean_p": mean_p, "logvar_p": logvar_p}


def dsae(p: Published, x: Tensor, noise: Tensor, v_noise: Tensor | None) -> Found:
    _, (ends, _) = p.recurrences["rnn_g_v"](x)
    v_mean, v_logvar = p.heads("inf_v", torch.cat([ends[0], ends[1]], -1))
    v = sampled(v_mean, v_logvar, v_noise).expand(len(x), -1, -1)
    mean, logvar = p.heads("inf_z", p.run("rnn_g_z", p.run("rnn_g_xv", torch.cat([x, v], -1))))
    z = sampled(mean, logvar, noise)
    mean_p, logvar_p = p.heads("prior", p.run("rnn_prior", before(z)))
    y = p.output(p.dense("mlp_vz_x", torch.cat([v, z], -1)))
    of_z = {"mean": mean, "logvar": logvar, "mean_p": mean_p, "logvar_p": logvar_p}
    return {"y": y, **of_z, "v_mean": v_mean, "v_logvar": v_logvar}


FORWARD = {"VAE": vae, "DKF": dkf, "RVAE": rvae, "STORN": storn, "VRNN": vrnn, "SRNN": srnn, "DSAE": dsae}


def losses(x: Tensor, found: dict[str, Tensor]) -> tuple[float, float]:
    """Itakura-Saito divergence with the published floor, and KL, the constant of which is left out: per frame."""
    y = found["y"] + 1e-10
    divergence = (x / y - torch.log(x / y) - 1).sum()
    mean, logvar = found["mean"], found["logvar"]
    mean_p, logvar_p = (found.get(name, torch.zeros_like(mean)) for name in ("mean_p", "logvar_p"))
    kl = -0.5 * (logvar - logvar_p - (logvar.exp() + (mean - mean_p) ** 2) / logvar_p.exp()).sum()
    if "v_mean" in found:
        v_mean, v_logvar = found["v_mean"], found["v_logvar"]
        kl = kl - 0.5 * (v_logvar - v_logvar.exp() - v_mean**2).sum()
    n_frames = x.shape[0] * x.shape[1]
    return float(divergence / n_frames), float(kl / n_frames)


@torch.no_grad()
@pytest.mark.parametrize("case", NETWORKS)
def test_the_losses_of_an_imported_prior_are_the_published_ones(case: str, tmp_path: Path) -> None:
    checkpoint, config = checkpoint_of(case, tmp_path)
    prior = import_dvae(checkpoint, config).double()
    power = torch.rand(2, 6, F, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).pow(3) * 5 + 1e-9
    power[..., -1] = 1e-11
    inference = prior.vae.infer(power)
    noises = []
    for z, factor in zip(inference.parts(), inference.factors, strict=True):  # what was drawn
        noise = (z - factor.posterior.mean) / factor.posterior.stddev
        noises.append(noise.transpose(0, 1) if factor.per_frame else noise)
    x = power.transpose(0, 1)
    published = Published(case, checkpoint)
    divergence, kl = losses(x, FORWARD[case.split(",")[0]](published, x, noises[0], noises[-1]))

    log_likelihood = prior.vae.log_likelihood(inference.latents, power)
    constants = float(np.log(np.pi) * F + power.log().sum(-1).mean() + F)
    assert -float(log_likelihood.mean()) - constants == pytest.approx(divergence, rel=1e-6)
    ours = sum(torch.distributions.kl_divergence(factor.posterior, factor.prior).sum() for factor in inference.factors)
    dims = Z + (V / len(x) if case == "DSAE" else 0)  # half a nat each is left out of theirs
    assert float(ours) / (len(x) * x.shape[1]) == pytest.approx(kl - dims / 2, rel=1e-6)
    assert float(elbo(prior.vae, power).kl.mean()) > 0
