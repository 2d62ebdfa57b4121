"""Scores of files against closed forms, other packages and offline computation, and their mean with an interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import fast_bss_eval
import librosa
import numpy as np
import pytest
import scipy.stats
import soundfile
import torch
from torch.distributions import Normal, kl_divergence

from audiovae import AudioVAE, FrameVAE, FrameVAESettings, evaluation, metrics
from audiovae.evaluation import bound, evaluate_file
from audiovae.level import active_level
from audiovae.metrics import Estimate, NotScored, Score, compare, estimate, normalise, si_sdr, summarise
from audiovae.settings import LevelName

RATE = 16000


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def with_noise(clean: np.ndarray, snr_db: float) -> np.ndarray:
    added = noise(*clean.shape, seed=7)
    return clean + added * np.float32(np.sqrt(np.mean(clean**2) / np.mean(added**2)) * 10 ** (-snr_db / 20))


@pytest.fixture(scope="module")
def clean(speech: torch.Tensor) -> np.ndarray:
    return speech.numpy()


# ---------------------------------------------------------------------------------------------------------------------
# SI-SDR


@pytest.mark.parametrize("snr_db", [-20, 0, 15, 60])
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_si_sdr_is_that_of_another_package(snr_db: float, offset: float) -> None:
    reference = noise(4000) + offset  # no mean is removed
    estimate = with_noise(reference, snr_db)
    expected = fast_bss_eval.si_sdr(
        reference[None].astype(np.float64), estimate[None].astype(np.float64), zero_mean=False
    )
    assert si_sdr(reference, estimate) == pytest.approx(float(expected[0]), abs=1e-6)


@pytest.mark.parametrize(
    ("reference", "estimate", "expected"),
    [
        ([1, 0], [3, 4], 10 * math.log10(9 / 16)),  # projected on the reference 3, beside it 4
        ([2, 0, 0], [1, 0, 0.1], 20.0),
        ([0.5, 0.5], [2, 2], math.inf),
        ([1, 0], [-3, 4], 10 * math.log10(9 / 16)),  # the sign is part of the scale
        ([1, 1], [1, -1], -math.inf),
    ],
)
def test_si_sdr_of_vectors_by_hand(reference: list[float], estimate: list[float], expected: float) -> None:
    assert si_sdr(np.array(reference, float), np.array(estimate, float)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 0.3, 1e4])
def test_si_sdr_does_not_depend_on_either_scale(scale: float) -> None:
    reference, other = noise(3000), noise(3000, seed=1)
    expected = si_sdr(reference, reference + other)
    assert si_sdr(reference, scale * (reference + other)) == pytest.approx(expected, abs=1e-5)
    assert si_sdr(scale * reference, reference + other) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", metrics.WAVE_METRICS)
@pytest.mark.parametrize("silent", ["reference", "estimate"])
def test_silence_is_not_scored(name: str, silent: str) -> None:
    pytest.importorskip({"estoi": "pystoi", "dnsmos": "speechmos"}.get(name, name) if name != "si_sdr" else "numpy")
    waves = {"reference": noise(RATE), "estimate": noise(RATE), silent: np.zeros(RATE, np.float32)}
    with pytest.raises(NotScored, match="silent"):
        metrics.METRICS[name].function(waves["reference"], waves["estimate"])


# ---------------------------------------------------------------------------------------------------------------------
# Perception


def require(name: str) -> None:
    pytest.importorskip({"pesq": "pesq", "estoi": "pystoi", "dnsmos": "speechmos"}[name])


@pytest.mark.parametrize(
    ("name", "best"), [("pesq", 4.644), ("estoi", 1.0)]  # wide-band PESQ ends at 4.644, see ITU-T P.862.2
)  # fmt: skip
def test_identical_speech_has_the_best_score_and_noise_lowers_it(clean: np.ndarray, name: str, best: float) -> None:
    require(name)
    function = metrics.METRICS[name].function
    scores = [function(clean, estimate) for estimate in (clean, with_noise(clean, 15), with_noise(clean, 0))]
    assert scores[0] == pytest.approx(best, abs=2e-3)
    assert scores[0] > scores[1] + 0.02 > scores[2] + 0.04


def test_dnsmos_prefers_clean_speech_and_does_not_see_the_reference(clean: np.ndarray) -> None:
    require("dnsmos")
    noisy = with_noise(clean, 0)
    of_noisy = metrics.dnsmos(clean, noisy)
    assert metrics.dnsmos(noisy, noisy) == of_noisy
    assert of_noisy + 0.5 < metrics.dnsmos(clean, 30 * clean) <= 5  # above full scale, which the model refuses


@pytest.mark.parametrize("name", ["pesq", "estoi", "dnsmos"])
def test_what_is_too_short_for_a_metric_is_not_scored(name: str) -> None:
    require(name)
    with pytest.raises(NotScored, match=r"shorter than 0\.5 s"):
        metrics.METRICS[name].function(noise(7999), noise(7999, seed=1))


def test_sound_without_speech_is_not_scored_by_estoi() -> None:
    require("estoi")
    click = np.zeros(RATE, np.float32)
    click[8000:8200] = noise(200)
    with pytest.raises(NotScored, match="too little speech"):
        metrics.estoi(click, with_noise(click, 10))


# ---------------------------------------------------------------------------------------------------------------------
# Comparing files


@pytest.fixture
def without_dnsmos(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds a file."""
    monkeypatch.setattr(
        metrics, "WAVE_METRICS", {name: f for name, f in metrics.WAVE_METRICS.items() if name != "dnsmos"}
    )


@pytest.mark.usefixtures("without_dnsmos")
def test_compare_averages_the_channels(clean: np.ndarray) -> None:
    reference = np.stack([clean, clean[::-1]])
    estimate = np.stack([with_noise(clean, 20), with_noise(clean[::-1], 5)])
    both = compare(reference, estimate, RATE)
    alone = [compare(reference[i : i + 1], estimate[i : i + 1], RATE) for i in (0, 1)]
    assert both.values.keys() == alone[0].values.keys()
    for name, value in both.values.items():
        assert value == pytest.approx((alone[0].values[name] + alone[1].values[name]) / 2, rel=1e-6)
        assert alone[0].values[name] > alone[1].values[name]


def test_compare_names_what_it_cannot_score(clean: np.ndarray) -> None:
    score = compare(clean[None], 0 * clean[None], RATE)
    assert score.values == {}
    assert score.reasons.keys() == metrics.WAVE_METRICS.keys()
    assert score.reasons["si_sdr"] == "silent"
    short = compare(clean[None, 16000:16100], clean[None, 16000:16100] + 0.01, RATE)
    assert short.values.keys() == {"si_sdr"}
    assert short.reasons["estoi"] == "shorter than 0.5 s"


@pytest.mark.usefixtures("without_dnsmos")
def test_compare_gives_perceptual_metrics_16_khz_and_si_sdr_the_rate_of_the_file(clean: np.ndarray) -> None:
    high = librosa.resample(clean, orig_sr=RATE, target_sr=48000)
    tone = 0.1 * np.sin(2 * np.pi * 15000 * np.arange(len(high)) / 48000).astype(np.float32)  # which 16 kHz cannot hold
    score = compare(high[None], (high + tone)[None], 48000)
    assert score.values["si_sdr"] == pytest.approx(si_sdr(high, high + tone), abs=1e-6)
    assert score.values["si_sdr"] < 5
    if "estoi" in score.values:
        assert score.values["estoi"] > 0.99


# ---------------------------------------------------------------------------------------------------------------------
# Means over files


@pytest.mark.parametrize(
    "values", [[1.0, 2.0], [3.0, -1.0, 4.5, 0.25], list(np.random.default_rng(3).normal(5, 2, 40))]
)
def test_the_interval_is_that_of_students_t(values: list[float]) -> None:
    result = estimate(values)
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert (result.mean - result.half_width, result.mean + result.half_width) == (
        pytest.approx(low),
        pytest.approx(high),
    )
    assert result.n_files == len(values)


def test_one_file_has_no_interval_and_no_file_no_mean() -> None:
    one, none = estimate([2.5]), estimate([])
    assert (one.mean, math.isnan(one.half_width), one.n_files) == (2.5, True, 1)
    assert (math.isnan(none.mean), none.n_files) == (True, 0)


def test_exact_estimates_have_an_infinite_mean_without_a_warning() -> None:
    result = estimate([math.inf, math.inf])  # any warning is an error here
    assert result.mean == math.inf
    assert estimate([math.inf, 3.0]).mean == math.inf


def test_files_without_a_value_are_left_out_and_not_averaged() -> None:
    summary = summarise([{"si_sdr": 10.0, "pesq": 3.0}, {"si_sdr": 12.0}, {}])
    assert (summary["si_sdr"].mean, summary["si_sdr"].n_files) == (11.0, 2)
    assert (summary["pesq"].mean, summary["pesq"].n_files) == (3.0, 1)
    assert list(summary) == ["si_sdr", "pesq"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Estimate(1290.44, 8.26, 25), "1290.4 ± 8.3"),
        (Estimate(11.456, 0.504, 25), "11.46 ± 0.50"),
        (Estimate(0.95123, 0.0101, 25), "0.951 ± 0.010"),
        (Estimate(3.5, math.nan, 1), "3.50"),
    ],
)
def test_an_estimate_prints_with_its_interval(value: Estimate, text: str) -> None:
    assert str(value) == text


# ---------------------------------------------------------------------------------------------------------------------
# The normalised wave and the bound


def test_a_wave_is_trimmed_as_librosa_does_and_has_unit_rms(clean: np.ndarray) -> None:
    padded = np.concatenate([1e-4 * noise(9000), clean, 1e-4 * noise(4000, seed=1)])
    expected, (start, end) = librosa.effects.trim(padded, top_db=30)
    y = normalise(padded[None], RATE)
    assert 0 < start < end < len(padded)
    assert y.shape == (1, end - start)
    assert np.sqrt(np.mean(y.astype(np.float64) ** 2)) == pytest.approx(1.0, rel=1e-6)
    assert np.allclose(y[0], expected / np.sqrt(np.mean(expected**2)), rtol=1e-4)


@pytest.mark.parametrize("gain", [1e-6, 1e3])
def test_normalising_forgets_the_level(clean: np.ndarray, gain: float) -> None:
    assert np.allclose(
        normalise(np.float32(gain) * clean[None], RATE), normalise(clean[None], RATE), rtol=1e-4, atol=1e-6
    )


def test_channels_share_one_level() -> None:
    wave = np.stack([noise(8000), 0.1 * noise(8000, seed=1)])
    y = normalise(wave, RATE)
    assert np.mean(y**2) == pytest.approx(1.0, rel=1e-5)
    assert y[0].std() / y[1].std() == pytest.approx(wave[0].std() / wave[1].std(), rel=1e-5)


def test_silence_cannot_be_normalised() -> None:
    with pytest.raises(NotScored, match="silent"):
        normalise(np.zeros((2, 5000), np.float32), RATE)


class Certain(torch.nn.Module):
    """An encoder whose posterior has the same small spread everywhere: with it a draw of z is nearly its location."""

    def __init__(self, encoder: torch.nn.Module, spread: float) -> None:
        super().__init__()
        self.encoder, self.spread = encoder, spread

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        loc, scale = self.encoder(features).chunk(2, dim=-1)
        return torch.cat([loc, torch.full_like(scale, self.spread)], dim=-1)


@pytest.fixture(scope="module")
def certain(prior: AudioVAE) -> AudioVAE:
    vae = FrameVAE(prior.vae.n_freqs, FrameVAESettings(latent_dim=8, hidden=(32,)))
    vae.load_state_dict(prior.vae.state_dict())
    vae.encoder = Certain(vae.encoder, -50.0)
    return AudioVAE(prior.stft, vae, RATE).eval()


@pytest.mark.parametrize("n_channels", [1, 2])
def test_the_bound_is_that_of_an_offline_computation(certain: AudioVAE, n_channels: int) -> None:
    """By the formulas, with the model's own posterior and PSD, for a wave of more than one block of the streaming
    computation.
    """
    n_samples = evaluation._BLOCK + 12345
    wave = 0.2 * noise(n_channels, n_samples) * np.float32(1 + np.sin(np.arange(n_samples) / 30000)) / 2
    level = active_level(wave, RATE)
    window = np.sin(np.pi * (np.arange(1024) + 0.5) / 1024)
    with torch.no_grad():
        x = torch.from_numpy(wave.astype(np.float64))
        n_frames = 1 + math.ceil(x.shape[1] / 256)
        x = torch.nn.functional.pad(x, (512, n_frames * 256 + 1024))
        x = torch.stft(x, 1024, 256, window=torch.from_numpy(window), center=False, return_complex=True).mT[
            :, :n_frames
        ]
        posterior = certain.vae.infer((x.abs() / level).square().float()).factors[0].posterior
        variance = certain.vae.likelihood(posterior.mean).variance.double() * level**2  # of x itself
        nll = (math.log(math.pi) + variance.log() + x.abs().square() / variance).sum(-1)
        kl = kl_divergence(Normal(posterior.mean.double(), posterior.stddev.double()), Normal(0.0, 1.0)).sum(-1)
    values = bound(certain, wave)
    assert values.keys() == {"nll", "kl", "bound"}
    assert values["nll"] == pytest.approx(float(nll.mean()), rel=1e-5)
    assert values["kl"] == pytest.approx(float(kl.mean()), rel=1e-5)
    assert values["bound"] == pytest.approx(float((nll + kl).mean()), rel=1e-5)


@pytest.mark.parametrize("level_rule", ["active", "peak"])
def test_the_bound_is_minus_the_log_likelihood_of_the_prior(
    certain: AudioVAE, clean: np.ndarray, level_rule: LevelName
) -> None:
    wave = clean[None, 8000:24000]
    certain = AudioVAE(certain.stft, certain.vae, RATE, level_rule).eval()
    with torch.no_grad():
        expected = -float(certain.log_likelihood(torch.from_numpy(wave)).double().mean())
    assert bound(certain, wave)["bound"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n_samples", [1, 3])
@pytest.mark.parametrize("gain", [10.0, 1e-3])
def test_scaling_a_wave_moves_the_bound_by_its_log_determinant(
    prior: AudioVAE, clean: np.ndarray, gain: float, n_samples: int
) -> None:
    values = []
    for wave in (clean, np.float32(gain) * clean):
        torch.manual_seed(0)
        values.append(bound(prior, wave[None], n_samples))
    for name in values[0].keys() - {"kl"}:
        assert values[1][name] - values[0][name] == pytest.approx(2 * 513 * math.log(gain), rel=1e-4)
    assert values[1]["kl"] == pytest.approx(values[0]["kl"], rel=1e-4)


def test_the_importance_weighted_bound_is_the_tighter_one(prior: AudioVAE, clean: np.ndarray) -> None:
    torch.manual_seed(0)
    few, many = bound(prior, clean[None], 2), bound(prior, clean[None], 20)
    assert many["iw_bound"] < few["iw_bound"] < few["bound"]


# ---------------------------------------------------------------------------------------------------------------------
# Whole files


@pytest.mark.usefixtures("without_dnsmos")
def test_a_file_is_scored_by_its_trimmed_wave_at_unit_rms(prior: AudioVAE, clean: np.ndarray, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 0.01 * clean, RATE, "FLOAT")
    score = evaluate_file(prior, tmp_path / "a.wav")
    y = librosa.effects.trim(clean, top_db=30)[0]
    y = y / np.sqrt(np.mean(y**2))
    resynthesis = prior.resynthesize(torch.from_numpy(y)).detach().numpy()
    assert score.values["si_sdr"] == pytest.approx(
        float(fast_bss_eval.si_sdr(y[None], resynthesis[None], zero_mean=False)[0]), abs=1e-2
    )
    assert score.values["kl"] == pytest.approx(bound(prior, y[None])["kl"], rel=1e-3)
    assert score.values["bound"] == pytest.approx(score.values["nll"] + score.values["kl"], rel=1e-9)


def test_a_silent_file_is_reported_and_has_no_values(prior: AudioVAE, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(9000), RATE)
    assert evaluate_file(prior, tmp_path / "a.wav") == Score(
        {}, dict.fromkeys(["bound", *metrics.WAVE_METRICS], "silent")
    )


def test_the_choices_of_phase_and_latents_are_those_of_the_resynthesis(
    clean: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a trained model: to an untrained one any latents are as good as others."""
    prior = AudioVAE.from_pretrained()
    soundfile.write(tmp_path / "a.wav", clean, RATE, "FLOAT")
    monkeypatch.setattr(metrics, "WAVE_METRICS", {"si_sdr": metrics.METRICS["si_sdr"]})
    scores = {}
    for phase, latents in (("original", "mean"), ("original", "sample"), ("griffin-lim", "mean")):
        torch.manual_seed(0)
        scores[phase, latents] = evaluate_file(prior, tmp_path / "a.wav", phase, latents).values["si_sdr"]
    assert scores["original", "mean"] > scores["original", "sample"] > scores["griffin-lim", "mean"] + 5


def test_every_value_that_is_computed_stands_in_the_table_of_metrics(prior: AudioVAE, clean: np.ndarray) -> None:
    """So that it has a heading and a unit wherever it is shown."""
    scored = dict.fromkeys(metrics.WAVE_METRICS, 1.0)
    gains = metrics.improvement(Score(scored), Score(scored)).values
    assert metrics.METRICS.keys() == bound(prior, clean[None, :5000], n_samples=2).keys() | gains.keys()
    headings = [metric.heading for metric in metrics.METRICS.values()]
    assert len(set(headings)) == len(headings)
    assert metrics.METRICS["si_sdr"].title == "SI-SDR (dB)"


def test_an_improvement_is_the_difference_to_the_noisy_input() -> None:
    noisy = metrics.Score({"si_sdr": 5.0, "pesq": 1.5}, {"estoi": "silent"})
    better = metrics.improvement(metrics.Score({"si_sdr": 12.0, "pesq": 2.0, "estoi": 0.9}, {}), noisy)
    assert better.values == {"si_sdr": 12.0, "pesq": 2.0, "estoi": 0.9, "si_sdr_gain": 7.0, "pesq_gain": 0.5}


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    checks: dict[str, Callable[..., float]] = {
        "pesq": metrics.pesq,
        "pystoi": metrics.estoi,
        "speechmos": metrics.dnsmos,
    }
    for module, function in checks.items():
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            NotScored, match=rf"not installed \(pip install 'audiovae\[{'pesq' if module == 'pesq' else 'metrics'}\]'"
        ):
            function(noise(RATE), noise(RATE))
