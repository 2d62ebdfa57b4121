"""Priors of the DVAE collection: checkpoints of its layout, made here, against its equations, written down here."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from published import LAYERS, NETWORKS, F, H, V, Z, checkpoint_of
from torch import Tensor, nn
from torch.nn import functional

from audiovae import AudioVAE, elbo
from audiovae.cli.main import main
from audiovae.dvae import card_of, import_dvae
from audiovae.errors import ModelError

RATE = 16000
Posterior = Callable[[Tensor, int], tuple[Tensor, Tensor]]


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
    checkpoint, config = checkpoint_of(case, tmp_path, is_deaf=True)
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


def audiovae(command: str) -> int:
    return main(command.split())


# What is made of it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["VAE", "RVAE, not causal"])
def test_the_front_end_and_the_level_of_an_imported_prior_are_the_published_ones(case: str, tmp_path: Path) -> None:
    """Inside of a recording its spectrogram is that of torch over x / max|x|; it says so in a saved model, too."""
    checkpoint, config = checkpoint_of(case, tmp_path)
    made = import_dvae(checkpoint, config)
    made.save_pretrained(tmp_path / "model", card_of(made, checkpoint, config))
    prior = AudioVAE.from_pretrained(tmp_path / "model")
    wave = 0.02 * torch.randn(4000, generator=torch.Generator().manual_seed(0))
    window = torch.sin(torch.arange(0.5, 64.5) / 64 * torch.pi)
    expected = torch.stft(wave / wave.abs().max(), 64, 16, window=window, return_complex=True).mT
    found, level = prior.analyse(wave)
    assert float(level) == float(wave.abs().max())
    torch.testing.assert_close(found[2:-2], expected[2 : len(found) - 2], rtol=1e-4, atol=1e-4)
    assert (prior.sample_rate, prior.level_rule, prior.model_hash()) == (RATE, "peak", made.model_hash())
    card = (tmp_path / "model" / "README.md").read_text()
    assert "trim = True (30 dB), beta = 1e-2" in card
    assert "the weights of model.pt, whose configuration is\nconfig.ini" in card


def test_checkpoints_of_a_run_that_went_on_are_read_too(tmp_path: Path) -> None:
    checkpoint, config = checkpoint_of("VAE", tmp_path)
    plain = import_dvae(checkpoint, config)
    weights = torch.load(checkpoint, weights_only=True)
    torch.save({"epoch": 3, "model_state_dict": weights, "optim_state_dict": {"state": {}}}, checkpoint)
    assert import_dvae(checkpoint, config).model_hash() == plain.model_hash()


def test_an_imported_prior_scores_enhances_and_separates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint_of("RVAE, not causal", tmp_path)
    assert audiovae("import dvae model.pt config.ini -o prior --json") == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["model"], made["kind"]) == ("prior", "RVAE")
    wave = 0.1 * np.random.default_rng(0).standard_normal((RATE // 2, 2))
    soundfile.write("one.wav", wave[:, 0], RATE, "FLOAT")
    soundfile.write("two.wav", wave, RATE, "FLOAT")
    assert audiovae("score one.wav --model prior --json") == 0
    prior = AudioVAE.from_pretrained("prior")
    assert prior.model_hash() == made["hash"]
    (row,) = json.loads(capsys.readouterr().out)["files"]
    torch.manual_seed(0)
    mono = torch.from_numpy(wave[:, 0]).float()
    with torch.no_grad():
        bounds = torch.stack([prior.log_likelihood(mono / mono.square().mean().sqrt()).mean() for _ in range(30)])
    assert row["values"]["bound"] == pytest.approx(-float(bounds.mean()), abs=6 * float(bounds.std()))
    assert audiovae("enhance one.wav -o speech.wav --model prior --method fast --quiet") == 0
    speech, _ = soundfile.read("speech.wav")
    assert speech.shape == (RATE // 2,)
    assert 0 < np.abs(speech).max() < 1
    assert audiovae("separate two.wav -o parts --model prior --sources 2 --method fast --quiet") == 0
    parts = [soundfile.read(path)[0] for path in sorted(Path("parts").rglob("*.wav"))]
    assert len(parts) == 3
    np.testing.assert_allclose(sum(parts), wave, atol=1e-3)


@pytest.mark.parametrize("case", ["VRNN", "SRNN", "STORN"])
def test_an_imported_prior_that_needs_the_past_enhances_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint_of(case, tmp_path)
    assert audiovae("import dvae model.pt config.ini -o prior") == 0
    assert capsys.readouterr().out.startswith(f"prior: {case}, ")
    soundfile.write("one.wav", 0.1 * np.random.default_rng(0).standard_normal(RATE // 2), RATE)
    assert audiovae("enhance one.wav -o speech.wav --model prior") == 2
    assert f"{case} needs past clean speech, which a mixture does not have" in capsys.readouterr().err
    assert audiovae("score one.wav --model prior --quiet") == 0


def test_an_imported_prior_is_fine_tuned_at_its_own_level(
    tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint_of("VAE", tmp_path)
    assert audiovae("import dvae model.pt config.ini -o prior --quiet") == 0
    train = f"train {packed} -o tuned --init prior --quiet --training.steps 3 --training.batch_frames 32"
    with pytest.raises(SystemExit):
        audiovae(f"{train} --level active")
    assert "--level active contradicts prior, which has peak" in capsys.readouterr().err
    assert audiovae(train) == 0
    tuned = AudioVAE.from_pretrained("tuned")
    assert (tuned.level_rule, tuned.vae.settings) == ("peak", AudioVAE.from_pretrained("prior").vae.settings)
    assert tuned.model_hash() != AudioVAE.from_pretrained("prior").model_hash()
    assert audiovae("info tuned --json") == 0
    assert json.loads(capsys.readouterr().out)["level"] == "peak"


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "old", "new", "told"),
    [
        ("VAE", "name = VAE", "name = KVAE", "describes a model KVAE; those known are VAE, DKF, RVAE"),
        ("VAE", "[STFT]", "[FT]", "config.ini: lacks the section [STFT]"),
        ("VAE", f"z_dim = {Z}", "", "config.ini: lacks z_dim in [Network]"),
        ("VAE", f"z_dim = {Z}", "z_dim = many", "z_dim must be whole numbers, got 'many'"),
        ("VAE", f"z_dim = {Z}", "z_dim = 3, 4", "z_dim must be 1 number here, got '3, 4'"),
        ("VAE", f"z_dim = {Z}", "z_dim = -3", "describes a model that cannot be built (latent_dim must be positive"),
        ("VAE", "activation = tanh", "activation = elu", "activation is elu, and can only be tanh or relu here"),
        ("DKF", "activation = tanh", "activation = relu", "activation is relu, and can only be tanh here"),
        ("VAE", "fs = 16000", "fs = fast", "fs in [STFT] must be a number, got 'fast'"),
        ("VAE", "fs = 16000", "fs = 8000", "x_dim is 33, and a window of 32 has 17 bins"),
        ("VAE", "hop_percent = 0.25", "hop_percent = 0.9", "describes a front end that cannot be built (hop_length"),
        ("VAE", "zp_percent = 0", "zp_percent = 1", "zp_percent is 1: transforms longer than their window"),
        ("VAE", "wlen_sec = 4e-3", "wlen_sec = 0", "fs of 16000 Hz and a window of 0 samples are no front end"),
        ("DKF", "bidir_gx = False", "bidir_gx = True", "bidir_gx is True, and can only be False here"),
        ("RVAE", "bidir_h = False", "bidir_h = perhaps", "bidir_h must be True or False, got 'perhaps'"),
        ("RVAE", "dense_z_h = ", "dense_z_h = 8", "dense_z_h is 8, and can only be empty here"),
        ("SRNN", "num_RNN_g = 1", "num_RNN_g = 2", "num_RNN_g is 2, and can only be 1 here"),
        ("SRNN", "dense_gz_z = 64,32", "dense_gz_z = ", "dense_gz_z is empty, and can only be 64,32 here"),
        ("SRNN", "dim_RNN_g = 5", "dim_RNN_g = 9", "(dim_RNN_h = 5, dim_RNN_g = 9), which are one width here"),
        ("VAE", f"z_dim = {Z}", "z_dim = 4", "model.pt: inf_mean.weight has shape (3, 5), and the configuration asks"),
        ("RVAE", "dense_g_z = ", "dense_g_z = 7", "model.pt: lacks mlp_g_z.linear0.bias, which a RVAE of this"),
        ("VAE", "dense_x_z = 6,5", "dense_x_z = 6", "has mlp_x_z.linear1.bias, which no VAE of this configuration has"),
    ],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_is_refused_by_name(
    case: str, old: str, new: str, told: str, tmp_path: Path
) -> None:
    checkpoint, config = checkpoint_of(case, tmp_path)
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    with pytest.raises(ModelError) as raised:
        import_dvae(checkpoint, config)
    assert told in str(raised.value)


def test_a_checkpoint_that_is_none_is_refused_and_nothing_in_it_is_run(tmp_path: Path) -> None:
    checkpoint, config = checkpoint_of("VAE", tmp_path)
    weights = torch.load(checkpoint, weights_only=True)
    marker = tmp_path / "run"

    class Malice:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return (os.mkdir, (str(marker),))

    cases: list[tuple[object, str]] = [
        ({**weights, "more": Malice()}, "is no file of weights alone, and nothing else is read"),
        ([1, 2], "holds no tensors by name"),
        ({}, "holds no tensors by name"),
        ({**weights, "inf_mean.bias": torch.full((Z,), torch.nan)}, "inf_mean.bias holds values that are NaN"),
    ]  # fmt: skip
    for content, told in cases:
        torch.save(content, checkpoint)
        with pytest.raises(ModelError, match=told):
            import_dvae(checkpoint, config)
    assert not marker.exists()
    checkpoint.write_text("text")
    with pytest.raises(ModelError, match="is no file of weights alone"):
        import_dvae(checkpoint, config)
    with pytest.raises(ModelError, match=r"nothing\.pt: cannot be read"):
        import_dvae(tmp_path / "nothing.pt", config)
    with pytest.raises(ModelError, match=r"model\.pt: is not an \.ini file; give the one"):
        import_dvae(checkpoint, checkpoint)
    with pytest.raises(ModelError, match=r"nothing\.ini: cannot be read"):
        import_dvae(checkpoint, tmp_path / "nothing.ini")


def test_a_model_that_is_there_is_replaced_only_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint_of("VAE", tmp_path)
    assert audiovae("import dvae model.pt config.ini -o prior --quiet") == 0
    checkpoint_of("DKF", tmp_path)
    with pytest.raises(SystemExit):
        audiovae("import dvae model.pt config.ini -o prior")
    assert capsys.readouterr().err == "audiovae: prior: exists already; --overwrite replaces it\n"
    assert audiovae("import dvae model.pt config.ini -o prior --overwrite --quiet") == 0
    assert AudioVAE.from_pretrained("prior").kind == "DKF"
