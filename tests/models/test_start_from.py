"""A VAE that begins with the layers of an autoencoder, in Python and by `train --init`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from audiovae import STFT, AudioVAE, Autoencoder, AutoencoderSettings, FrameVAE, FrameVAESettings
from audiovae.cli.main import main

SIZES: dict[str, Any] = {"latent_dim": 3, "hidden": (8, 8), "likelihood": "squared-error"}


def test_the_code_becomes_the_mean_and_the_decoder_stays() -> None:
    torch.manual_seed(0)
    autoencoder, vae = Autoencoder(9, AutoencoderSettings(**SIZES)), FrameVAE(9, FrameVAESettings(**SIZES))
    power = torch.rand(5, 7, 9)
    autoencoder.calibrate(power.flatten(0, 1))
    scale = vae.infer(power).factors[0].posterior.stddev.detach()
    vae.start_from(autoencoder)
    code = autoencoder.infer(power).latents
    posterior = vae.infer(power).factors[0].posterior
    torch.testing.assert_close(posterior.mean, code)
    assert (posterior.stddev - 1).abs().max() < 0.5 > (scale - 1).abs().max()
    torch.testing.assert_close(vae.log_likelihood(code, power), autoencoder.log_likelihood(code, power))


@pytest.mark.parametrize(
    ("of_vae", "of_autoencoder", "message"),
    [
        ({}, {"code_activation": "relu"}, "the autoencoder's code passes relu, and no mean of latents does"),
        ({"hidden": (8,)}, {}, r"the autoencoder has hidden \(8, 8\), and the model \(8,\); give both the same"),
        ({"likelihood": "bernoulli"}, {}, "the autoencoder has likelihood squared-error, and the model bernoulli"),
        ({"latent": "dirichlet"}, {}, "an autoencoder starts a FrameVAE of as many bins, with Gaussian latents"),
    ],
)
def test_what_does_not_fit_is_refused(of_vae: dict[str, Any], of_autoencoder: dict[str, Any], message: str) -> None:
    vae = FrameVAE(9, FrameVAESettings(**{**SIZES, **of_vae}))
    with pytest.raises(ValueError, match=message):
        vae.start_from(Autoencoder(9, AutoencoderSettings(**{**SIZES, **of_autoencoder})))


def test_train_begins_a_vae_with_a_saved_autoencoder(packed: Path, tmp_path: Path) -> None:
    short = ["--training.steps=2", "--training.batch_frames=64", "--quiet"]
    small = ["--vae.hidden=[8]", "--vae.latent_dim=3", "--stft.n_fft=256", "--stft.hop_length=128"]
    first, second = str(tmp_path / "autoencoder"), str(tmp_path / "vae")
    assert main(["train", str(packed), "-o", first, "--type=Autoencoder", *small, *short]) == 0
    begin = ["--init", first, "--type=FrameVAE", "--vae.posterior_scale=exp", "--training.learning_rate=1e-9"]
    assert main(["train", str(packed), "-o", second, *begin, *short]) == 0
    autoencoder, vae = AudioVAE.from_pretrained(first), AudioVAE.from_pretrained(second)
    assert vae.kind == "FrameVAE"
    assert vae.vae.settings == FrameVAESettings(
        latent_dim=3, hidden=(8,), likelihood="squared-error", posterior_scale="exp"
    )
    wave = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        vae.encode(wave).inference.latents, autoencoder.encode(wave).inference.latents, rtol=1e-4, atol=1e-4
    )


def test_train_refuses_options_that_contradict_the_autoencoder(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prior = AudioVAE(STFT(256, 128), Autoencoder(129, AutoencoderSettings(**SIZES)), 16000)
    prior.save_pretrained(tmp_path / "autoencoder")
    begin = ["--init", str(tmp_path / "autoencoder"), "--type=FrameVAE"]
    for option, message in {
        "--vae.latent_dim=4": "--vae.latent_dim 4 contradicts",
        "--vae.latent=dirichlet": "an autoencoder starts a FrameVAE of as many bins",
    }.items():
        with pytest.raises(SystemExit):
            main(["train", str(packed), "-o", str(tmp_path / "vae"), *begin, option])
        assert message in capsys.readouterr().err
