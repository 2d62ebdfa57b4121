"""Rank-1 demixing: against another implementation, the density that it stands for, and recordings with empty bands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import RATE
from mixtures import random_spectrogram, reverberant
from scipy.signal import butter, sosfilt
from spaces import LENGTHS, MORE_DAMAGE, mixture_of, normal, psds_of
from torch import Tensor

from audiovae import STFT
from audiovae.metrics import si_sdr
from audiovae.separation import Mixture
from audiovae.separation.iva import iva
from audiovae.separation.sources.envelope import Envelope, EnvelopeName
from audiovae.separation.spatial.demixing import Demixing
from audiovae.stft import Front


def of(x: Tensor) -> Mixture:
    return Mixture.of([x], torch.ones(1, dtype=torch.float64), [0])


def demixed(mixture: Mixture, n_sources: int, n_iterations: int, density: EnvelopeName = "gauss") -> Demixing:
    """Independent vector analysis."""
    space = Demixing(mixture, n_sources=n_sources)
    sources = [Envelope(mixture, mixture.power, density) for _ in range(n_sources)]
    for _ in range(n_iterations):
        for n, source in enumerate(sources):
            source.update(space.view([], n), 1.0)
        space.update([source.psd() for source in sources])
    return space


@pytest.mark.parametrize("density", ["gauss", "laplace"])
@pytest.mark.parametrize(("n_channels", "n_sources"), [(2, 2), (4, 2)])
def test_independent_vector_analysis_is_that_of_another_implementation(
    n_channels: int, n_sources: int, density: EnvelopeName
) -> None:
    """pyroomacoustics 0.10.1 on the mixture's principal components, 10 iterations from the identity."""
    pra = pytest.importorskip("pyroomacoustics")
    mixture = of(random_spectrogram(60, 9, n_channels))
    begun = Demixing(mixture, n_sources=n_sources)
    components = begun._x[0].permute(2, 0, 1).numpy()  # [frame, freq, row]
    expected = pra.bss.auxiva(components.copy(), n_iter=10, proj_back=False, model=density)
    found = demixed(mixture, n_sources, 10, density)._rows[0].permute(2, 0, 1)
    rows = torch.from_numpy(expected)
    scale = (found.abs().square().sum(0) / rows.abs().square().sum(0)).sqrt()  # Laplace's is by convention
    if density == "gauss":
        torch.testing.assert_close(scale, torch.ones_like(scale), rtol=1e-5, atol=0)
    torch.testing.assert_close(found, rows * scale, rtol=0, atol=1e-5 * float(found.abs().max()))
    assert (found - begun._x[0].permute(2, 0, 1)).abs().max() > 0.5


def test_components_are_the_largest_first_and_white() -> None:
    mixture = mixture_of(4)
    space = Demixing(mixture, n_sources=2)
    for i, n_frames in enumerate(LENGTHS):
        for f, components in enumerate(space._x[i]):
            x = mixture.spectrogram[i, :n_frames, f].mT  # [channel, frame]
            u, s, _ = torch.linalg.svd(x / n_frames**0.5, full_matrices=False)
            expected = u[:, :2].mH @ x / s[:2, None]
            torch.testing.assert_close((components[:, :n_frames] / expected).abs(), torch.ones(2, n_frames).double())


def test_the_nll_is_that_of_rows_with_one_source_each_and_no_update_increases_it() -> None:
    mixture = mixture_of(3, n_frames=[30, 20])
    psds = psds_of(mixture, 1, 1, 1, 1)  # the last is the noise, which has no row
    space = Demixing(mixture, n_sources=3)
    trace = []
    for _ in range(15):
        trace.append(mixture.mean_over_frames(space.nll(psds)))
        space.update(psds)
    assert torch.stack(trace).diff(dim=0).max() <= 1e-9 * trace[0].abs().max()
    assert (trace[-1] < trace[0] - 0.1).all()
    matrix = space.w @ space._pca  # [recording, freq, row, channel]
    for i, n_frames in enumerate([30, 20]):
        t, expected = n_frames - 1, 0.0
        for f in range(matrix.shape[1]):
            rows = matrix[i, f] @ mixture.spectrogram[i, t, f]
            variances = torch.stack([psd[0, i, t, f] for psd in psds[:3]])
            expected += float((torch.log(variances) + rows.abs().square() / variances).sum())
            expected -= 2 * float(torch.linalg.slogdet(space.w[i, f]).logabsdet)
        assert float(space.nll(psds)[i, t]) == pytest.approx(expected, rel=1e-9)


def test_images_are_the_joint_least_squares_on_all_rows_and_the_noise_the_rest() -> None:
    mixture = mixture_of(4)
    psds = psds_of(mixture, 1, 1, 1)
    space = Demixing(mixture, n_sources=2)
    space.update(psds)
    images = space.images(psds, [0, 1])
    torch.testing.assert_close(images.sum(0), mixture.spectrogram)
    powers = space.powers(psds, [0, 1])
    torch.testing.assert_close(powers[2], psds[2][0])
    for i, n_frames in enumerate(LENGTHS):
        for f in range(mixture.power.shape[-1]):
            x, rows = mixture.spectrogram[i, :n_frames, f], space._rows[i, f, :, :n_frames].mT
            columns = torch.linalg.lstsq(rows, x).solution  # [row, channel]
            for n in range(2):
                expected = rows[:, n, None] * columns[n]
                torch.testing.assert_close(images[n, i, :n_frames, f], expected, rtol=1e-6, atol=1e-6)
                power = psds[n][0, i, :, f] * columns[n].abs().square().mean()
                torch.testing.assert_close(powers[n, i, :, f], power, rtol=1e-6, atol=0)


def test_other_orders_of_microphones_and_other_levels_give_the_same_in_theirs() -> None:
    x = random_spectrogram(60, 9, 3)
    some_psds = [torch.ones(1, 1, 60, 9, dtype=torch.float64)] * 3
    images = demixed(of(x), 2, 10).images(some_psds, [0])
    channels = [2, 0, 1]
    other = demixed(of(x[..., channels]), 2, 10).images(some_psds, [0])
    torch.testing.assert_close(other, images[..., channels], rtol=0, atol=1e-7)
    other = demixed(of(30 * x), 2, 10).images(some_psds, [0])
    torch.testing.assert_close(other, 30 * images, rtol=0, atol=1e-6)


def test_a_mixture_without_noise_comes_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    bursts = torch.rand(200, 1, 2, generator=generator).double().pow(4)
    sources = normal(200, 8, 2) * bursts
    images = torch.einsum("fcn,tfn->ntfc", normal(8, 2, 2, seed=1), sources)
    mixture = of(images.sum(0))
    space = demixed(mixture, 2, 40)
    found = space.images([mixture.power.unsqueeze(0)] * 3, [0])[:2, 0]
    errors = [[float((a - b).abs().square().sum() / b.abs().square().sum()) for b in images] for a in found]
    assert min(errors[0][0] + errors[1][1], errors[0][1] + errors[1][0]) < 0.02


def test_bins_without_sound_take_no_part() -> None:
    """What a recording's former sample rate left there comes and goes in another way: as good as on the band alone."""
    x = random_spectrogram(60, 12, 3)
    x[:, 7:] = 1e-4 * random_spectrogram(60, 5, 3, seed=3)
    whole, band = demixed(of(x), 2, 15), demixed(of(x[:, :7]), 2, 15)
    assert whole._mixture.heard.tolist() == [[True] * 7 + [False] * 5]
    torch.testing.assert_close(whole._rows[:, :7], band._rows, rtol=0, atol=1e-9)


@pytest.mark.parametrize("density", ["gauss", "laplace"])
def test_an_envelope_is_the_mean_power_of_its_row(density: EnvelopeName) -> None:
    mixture = mixture_of(2)
    space, source = Demixing(mixture, n_sources=2), Envelope(mixture, mixture.power, density)
    before = source.psd()
    source.update(space.view([], 1), 1.0)
    for i, n_frames in enumerate(LENGTHS):
        power = space._rows[i, :, 1, :n_frames].abs().square().mean(0)
        expected = (power if density == "gauss" else power.sqrt()).unsqueeze(-1).expand(-1, mixture.power.shape[-1])
        torch.testing.assert_close(source.psd()[0, i, :n_frames], expected)
        assert torch.equal(source.psd()[0, i, n_frames:], before[0, i, n_frames:])


# As a start ----------------------------------------------------------------------------------------------------------


def with_waves(waves: list[Tensor]) -> Mixture:
    stft = STFT(64, 16, "hann").to(waves[0])
    spectrograms = [stft(wave).movedim(0, -1) for wave in waves]
    levels = torch.ones(len(waves), dtype=waves[0].dtype)
    return Mixture.of(spectrograms, levels, [0] * len(waves), waves=waves)


def test_the_start_of_a_batch_of_two_lengths_is_that_of_its_members() -> None:
    """Through windows of 256 samples and, where there are enough such frames, of 512; frames at an end see what stands
    beyond it in the batch.
    """
    waves = [reverberant(0.2, 3), reverberant(0.4, 3), reverberant(0.131, 3, seed=5)]
    find = iva(Front(STFT(512, 128, "hann"), RATE), 2, (7, 3))
    together = find(with_waves(waves))
    for i, wave in enumerate(waves):
        torch.testing.assert_close(together[:, i, :, : wave.shape[-1]], find(with_waves([wave]))[:, 0])
        assert (together[:, i, :, wave.shape[-1] :] == 0).all()
    assert (together.std((1, 3)) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MORE_DAMAGE)
def test_damaged_recordings_give_a_finite_start(name: str, dtype: torch.dtype) -> None:
    wave = MORE_DAMAGE[name](reverberant(0.2, 3)).to(dtype)
    found = iva(Front(STFT(256, 64, "hann"), RATE), 2, (7, 3))(with_waves([wave]))
    assert found.dtype == dtype
    assert torch.isfinite(found).all()
    assert found.abs().max() <= 100 * wave.abs().max()


def test_an_envelope_counts_the_lowest_frequencies_alone() -> None:
    mixture = mixture_of(2)
    space, source = Demixing(mixture, n_sources=2), Envelope(mixture, mixture.power, n_counted=3)
    source.update(space.view([], 1), 1.0)
    rows = (space.w @ (space._pca @ mixture.spectrogram.permute(0, 2, 3, 1)))[:, :3, 1].abs().square()
    for i, n_frames in enumerate(LENGTHS):
        torch.testing.assert_close(source.variance()[i, :n_frames, 0], rows[i, :, :n_frames].mean(0))


def test_a_reordered_row_is_another_source_and_nothing_else_changes() -> None:
    mixture = mixture_of(2)
    space = demixed(mixture, 2, 3)
    psds = psds_of(mixture, 1, 1)
    w, misfit, columns = space.w, space.nll(psds), space.columns()
    order = torch.tensor([1, 0]).expand(*w.shape[:2], 2)
    space.reorder(order)
    torch.testing.assert_close(space.w, w.flip(-2))
    torch.testing.assert_close(space.columns(), columns.flip(-1))
    torch.testing.assert_close(space.nll(psds[::-1]), misfit)


def test_a_matrix_begins_blind_to_the_other_sources_covariances() -> None:
    """Sources of rank one: no row hears another's column."""
    mixture = mixture_of(2)
    ways = normal(2, len(mixture.power), mixture.power.shape[-1], 2)
    space = Demixing(mixture, ways.unsqueeze(-1) * ways.unsqueeze(-2).conj(), n_sources=2)
    heard = torch.einsum("rfnk,rfkc,srfc->rfns", space.w, space._pca, ways).abs().square()
    own, others = heard.diagonal(dim1=-2, dim2=-1).sum(-1), heard.sum((-2, -1))
    assert (own / others).mean() > 0.95


def test_bands_that_sound_at_other_times_stay_with_their_source() -> None:
    """Each of two sources is low while the other is high: by when they sound, bands would change places."""
    generator = np.random.default_rng(0)
    n_samples = 3 * RATE
    low = butter(6, 3000, "low", fs=RATE, output="sos")
    high = butter(6, 5200, "high", fs=RATE, output="sos")
    first = np.arange(n_samples) // (RATE // 4) % 2 == 0
    images = []
    for delays, sounds in (((0, 2, 5), first), ((4, 1, 0), ~first)):
        wave = sosfilt(low, generator.standard_normal(n_samples)) * np.where(sounds, 1, 0.05)
        wave += 0.5 * sosfilt(high, generator.standard_normal(n_samples)) * np.where(sounds, 0.05, 1)
        images.append([np.roll(wave, delay) for delay in delays])
    truth = torch.from_numpy(np.array(images) + 1e-3 * generator.standard_normal((2, 3, n_samples)))
    find = iva(Front(STFT(1024, 256, "hann"), RATE), 2, (20, 1))
    found = find(with_waves([truth.sum(0)]))[:, 0, 0].numpy()
    scores = [[si_sdr(true, one) for one in found] for true in truth[:, 0].numpy()]
    assert max(scores[0][0] + scores[1][1], scores[0][1] + scores[1][0]) / 2 > 8  # 11.5; rows as they were: 2.7
