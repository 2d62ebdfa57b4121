"""Spatial models: against full covariances, automatic differentiation, another implementation, and their optima."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE
from mixtures import reverberant
from spaces import DAMAGE, LENGTHS, N_FREQS, begun, mixture_of, normal, positive, psds_of
from torch import Tensor

from audiovae import STFT
from audiovae.level import spectrogram_level
from audiovae.separation import NMF, EMSettings, JointDiagonal, Mixture, Separator, SingleChannel, Spatial, even_start
from audiovae.separation.sources.source import MakeSource
from audiovae.separation.spatial.full_rank import FullRank, FullRankPair
from audiovae.stft import Front, power


def joint(mixture: Mixture, n_sources: int, per_frequency: bool = False, **more: Any) -> JointDiagonal:
    """With a Q and gains of random numbers."""
    n_recordings, _, n_freqs, n_channels = mixture.spectrogram.shape
    eye = torch.eye(n_channels, dtype=torch.complex128)
    q = eye + 0.5 * normal(n_recordings, n_freqs, n_channels, n_channels, seed=3)
    gains = positive(n_sources, n_recordings, n_freqs if per_frequency else 1, n_channels, seed=4)
    return JointDiagonal(mixture, (q, gains), n_sources, per_frequency, **more)


def full(mixture: Mixture, n_sources: int, kind: Any = FullRank, **more: Any) -> Any:
    return kind(mixture, begun(mixture, n_sources), n_sources, **more)


def pair(mixture: Mixture, n_sources: int) -> Any:
    if n_sources != 2:
        pytest.skip("two sources alone")
    return full(mixture, 2, FullRankPair)


def covariances(space: Spatial, mixture: Mixture, n_sources: int) -> Tensor:
    """H_nf, `[source, recording, freq, channel, channel]`."""
    n_recordings, _, n_freqs, n_channels = mixture.spectrogram.shape
    if isinstance(space, FullRank | FullRankPair):
        return space.h
    if isinstance(space, JointDiagonal):
        back = torch.linalg.inv(space.q)
        return (back * space.gains.unsqueeze(-2)) @ back.mH
    assert n_channels == 1
    return torch.ones(n_sources, n_recordings, n_freqs, 1, 1, dtype=torch.complex128)


SPACES = {
    "single": (1, lambda mixture, n: SingleChannel(mixture)),
    "joint, two": (2, joint),
    "joint, four": (4, joint),
    "joint by frequency": (3, partial(joint, per_frequency=True)),
    "full": (3, full),
    "full, one microphone": (1, full),
    "full, the second white": (2, partial(full, white=[1])),
    "a full pair": (3, pair),
}


# Against full covariances --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_draws", [(1, 1), (3, 1), (1, 4), (1, 1, 2), (2, 3, 1)], ids=str)
@pytest.mark.parametrize("name", SPACES)
def test_everything_is_that_of_full_covariance_matrices(name: str, n_draws: tuple[int, ...]) -> None:
    """log det Y + x' Y^-1 x, y' H y, tr(Y^-1 H), tr((Y^-1 H)^2), lambda H Y^-1 x and lambda tr(H) / M, bin by bin.

    The draws of one source count one by one, those of several by their means.
    """
    n_channels, make = SPACES[name]
    mixture = mixture_of(n_channels)
    psds = psds_of(mixture, *n_draws)
    space = make(mixture, len(psds))
    h = covariances(space, mixture, len(psds))
    seen = [psd.mean(0, keepdim=True) for psd in psds] if sum(n > 1 for n in n_draws) > 1 else psds
    n_seen = max(len(psd) for psd in seen)
    draws = [psd.expand(n_seen, -1, -1, -1) for psd in seen]
    x = mixture.spectrogram

    def entry(i: int, t: int, f: int, values: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Covariance, its inverse, and y."""
        y = sum((value * h[n, i, f] for n, value in enumerate(values)), start=torch.zeros_like(h[0, i, f]))
        return y, torch.linalg.inv(y), torch.linalg.solve(y, x[i, t, f])

    nll = space.nll(psds)
    chosen = [psd[:, [1, 0]] for psd in psds]
    images, powers = space.images(chosen, [1, 0]), space.powers(chosen, [1, 0])
    assert nll.shape == mixture.inside.shape
    assert images.shape == (len(psds), 2, *mixture.spectrogram.shape[1:])
    for i, n_frames in enumerate(LENGTHS):
        for t in range(0, n_frames, 2):
            expected = 0.0
            for f in range(N_FREQS):
                image = torch.zeros(len(psds), n_channels, dtype=torch.complex128)
                for draw in range(n_seen):
                    values = [psd[draw, i, t, f] for psd in draws]
                    y, _, solved = entry(i, t, f, values)
                    of_bin = torch.linalg.slogdet(y).logabsdet + (x[i, t, f].conj() @ solved).real
                    expected += float(of_bin) / n_seen
                    for n, value in enumerate(values):
                        image[n] += value * h[n, i, f] @ solved / n_seen
                assert torch.allclose(images[:, 1 - i, t, f], image, rtol=1e-8)
                trace = torch.einsum("nii->n", h[:, i, f]).real / n_channels
                mean = torch.stack([psd[:, i, t, f].mean() for psd in psds])
                assert torch.allclose(powers[:, 1 - i, t, f], mean * trace)
            assert float(nll[i, t]) == pytest.approx(expected, rel=1e-8)

    for n in range(len(psds)):
        view = space.view(psds, n)
        own = positive(3, *mixture.power.shape, seed=30)
        others = [value for i, value in enumerate(psds) if i != n]
        if sum(len(other) > 1 for other in others) > 1:
            others = [other.mean(0, keepdim=True) for other in others]
        n_others = max(len(other) for other in others)
        if n_others > 1:
            own = own[0]  # beside draws of another, a source without
        misfit = view.nll(own)
        (numerator, denominator), information = view.statistics(own), view.information(own)
        assert numerator.shape == denominator.shape == information.shape == own.shape
        for i, n_frames in enumerate(LENGTHS):
            assert (numerator[..., i, n_frames:, :] == 0).all()
            assert (denominator[..., i, n_frames:, :] == 0).all()
            assert (information[..., i, n_frames:, :] == 0).all()
            t, sums = n_frames - 1, torch.zeros(4, dtype=torch.float64)
            for f in range(N_FREQS):
                found = torch.zeros(4, dtype=torch.float64)
                for draw in range(n_others):
                    rest = [other.expand(n_others, -1, -1, -1)[draw, i, t, f] for other in others]
                    rest.insert(n, own.reshape(-1, *mixture.power.shape)[-1, i, t, f])
                    y, inverse, solved = entry(i, t, f, rest)
                    ratio = inverse @ h[n, i, f]
                    found[0] += (torch.linalg.slogdet(y).logabsdet + (x[i, t, f].conj() @ solved).real) / n_others
                    found[1] += (solved.conj() @ h[n, i, f] @ solved).real / n_others
                    found[2] += ratio.trace().real / n_others
                    found[3] += (ratio @ ratio).trace().real / n_others
                got = [
                    part.reshape(-1, *mixture.power.shape)[-1, i, t, f]
                    for part in (numerator, denominator, information)
                ]
                assert torch.allclose(torch.stack(got), found[1:], rtol=1e-7)
                sums += found
            assert float(misfit.reshape(-1, *mixture.inside.shape)[-1, i, t]) == pytest.approx(float(sums[0]), rel=1e-8)


@pytest.mark.parametrize("n_others", [1, 3])
@pytest.mark.parametrize("name", SPACES)
def test_the_statistics_are_the_gradient_of_the_nll(name: str, n_others: int) -> None:
    """d nll / d lambda = denominator - numerator, by automatic differentiation; the sum of all views is the model's."""
    n_channels, make = SPACES[name]
    mixture = mixture_of(n_channels)
    psds = psds_of(mixture, 1, n_others)
    space = make(mixture, 2)
    view = space.view(psds, 0)
    own = psds[0][0].requires_grad_()
    inside = mixture.inside
    (slope,) = torch.autograd.grad((view.nll(own) * inside).sum(), own)
    numerator, denominator = view.statistics(own.detach())
    assert torch.allclose(slope, denominator - numerator, rtol=1e-9)
    assert slope.abs().mean() > 0.01
    assert torch.allclose(view.nll(own).detach()[inside], space.nll(psds)[inside].detach())


def test_stereo_is_the_mean_power_by_one_gain() -> None:
    mixture = mixture_of(2)
    psds = psds_of(mixture, 1, 1)
    space = SingleChannel(mixture)
    variance = psds[0][0] + psds[1][0]
    power = mixture.spectrogram.abs().square().mean(-1)
    assert torch.allclose(space.nll(psds), (torch.log(variance) + power / variance).sum(-1))
    expected = (psds[0][0] / variance).unsqueeze(-1) * mixture.spectrogram
    assert torch.allclose(space.images(psds, [0, 1])[0], expected)


# Updates -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["ip", "iss"])
@pytest.mark.parametrize("per_frequency", [False, True])
@pytest.mark.parametrize("n_draws", [(1, 1, 1), (2, 1, 3)], ids=str)
def test_no_update_of_space_increases_the_nll(per_frequency: bool, n_draws: tuple[int, ...], update: str) -> None:
    """Where draws enter by their means."""
    mixture = mixture_of(3, n_frames=[30, 20])
    psds = [psd.mean(0, keepdim=True) for psd in psds_of(mixture, *n_draws)]
    space = joint(mixture, 3, per_frequency, update=update)
    trace = []
    for _ in range(25):
        trace.append(torch.where(mixture.inside, space.nll(psds), 0.0).sum(-1))
        space.update(psds)
    steps = torch.stack(trace).diff(dim=0)
    assert steps.max() <= 1e-9 * trace[0].abs().max()
    assert (trace[-1] < trace[0] - 10).all()


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_update_is_refused() -> None:
    with pytest.raises(ValueError, match="update must be one of ip, iss, got 'pi'"):
        JointDiagonal(mixture_of(2), update="pi")  # type: ignore[arg-type]


def test_a_row_of_an_update_is_at_the_optimum_of_iterative_projection() -> None:
    """The last row: q' V q = 1 and q' V q_k = 0 for the others, V = mean x x' / Y."""
    mixture = mixture_of(3)
    psds = psds_of(mixture, 1, 1)
    space = joint(mixture, 2)
    space.update(psds)
    for i, n_frames in enumerate(LENGTHS):
        for f in range(N_FREQS):
            variance = sum(psd[0, i, :n_frames, f] * space.gains[n, i, 0, 2] for n, psd in enumerate(psds))
            x = mixture.spectrogram[i, :n_frames, f]
            v = torch.einsum("ti,tj,t->ij", x, x.conj(), (1 / variance).to(x.dtype)) / n_frames
            q = space.q[i, f]
            products = q @ v @ q[2].conj()
            assert torch.allclose(products, torch.tensor([0, 0, 1], dtype=torch.complex128), atol=1e-6)


def test_gains_that_every_frequency_shares_stay_shared_and_others_part() -> None:
    mixture = mixture_of(3)
    psds = psds_of(mixture, 1, 1)
    for per_frequency, n_gains in ((False, 1), (True, N_FREQS)):
        space = JointDiagonal(mixture, None, 2, per_frequency)
        assert space.gains.shape == (2, 2, n_gains, 3)
        space.update(psds)
        assert space.gains.shape == (2, 2, n_gains, 3)
        assert (space.gains.std(2, correction=0) > 1e-3).any() == per_frequency


def test_a_white_source_is_the_identity_at_first_and_the_square_of_the_rows_ever_after() -> None:
    mixture = mixture_of(3)
    psds = psds_of(mixture, 1, 1, 1)
    space = JointDiagonal(mixture, None, 3, white=[1])
    eye = torch.eye(3, dtype=torch.complex128)
    assert torch.allclose(covariances(space, mixture, 3)[1], eye.expand(2, N_FREQS, 3, 3))
    before = space.gains.clone()
    for _ in range(3):
        space.update(psds)
        assert torch.allclose(space.gains[1], torch.einsum("rfij,rfij->rfi", space.q, space.q.conj()).real)
    assert (space.gains[0] - before[0]).abs().max() > 0.1
    before = space.gains.clone()
    space._update_gains([psd[0] for psd in psds])
    assert torch.equal(space.gains[1], before[1])
    assert (space.gains[[0, 2]] != before[[0, 2]]).all()


@pytest.mark.parametrize("white", [0, 1, 2])
def test_a_white_source_stands_at_its_own_place(white: int) -> None:
    """Whatever covariances it is given; the others' are found again in Q^-1 diag(g) Q^-'."""
    mixture = mixture_of(3)
    parts = torch.randn(3, 2, N_FREQS, 3, 3, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    given = parts @ parts.mH
    space = JointDiagonal(mixture, given, 3, per_frequency=True, white=[white])
    found = covariances(space, mixture, 3)
    for n in {0, 1, 2} - {white}:
        ratio = found[n] / given[n]
        assert torch.allclose(ratio, ratio[..., :1, :1].expand_as(ratio), rtol=0.1)
    with pytest.raises(ValueError, match="covariances to begin with must be one of each of 2 sources, got 3"):
        JointDiagonal(mixture, given, 2)


def test_a_start_is_not_written_into() -> None:
    """Several runs begin at it."""
    mixture = mixture_of(3)
    first = JointDiagonal(mixture, None, 2, white=[1])
    state = first.q.clone(), first.gains.clone()
    space = JointDiagonal(mixture, (first.q, first.gains), 2, white=[1])
    for _ in range(2):
        space.update(psds_of(mixture, 1, 1))
    assert torch.equal(first.q, state[0])
    assert torch.equal(first.gains, state[1])


# The whole -----------------------------------------------------------------------------------------------------------


def known_nmf(spectra: Tensor, activations: Tensor) -> MakeSource:
    """NMF that begins at these."""

    def make(mixture: Mixture, first: Tensor) -> NMF:
        source = NMF(mixture, first, spectra.shape[-1], together=True)
        source.spectra, source.activations = spectra.unsqueeze(0).clone(), activations.unsqueeze(0).clone()
        return source

    return make


def rooms(stft: STFT, n_sources: int, n_iterations: int, **options: Any) -> Separator:
    return Separator(
        Front(stft, RATE),
        [partial(NMF, rank=4, together=True)] * n_sources,
        [even_start(n_sources)],
        partial(JointDiagonal, n_sources=n_sources, **options),
        EMSettings(n_iterations),
    )


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("source", ["synthetic, two", "synthetic, four", "a room"])
def test_fastmnmf2_is_that_of_another_implementation(source: str, request: pytest.FixtureRequest) -> None:
    """pyroomacoustics 0.10.1 from the same Q, G, W and H, 30 iterations; at unit level, where no floor is felt."""
    pra = pytest.importorskip("pyroomacoustics")
    stft = STFT(512, 128, "hann").double()
    if source == "a room":
        file = Path(request.getfixturevalue("data")) / "rooms-mini" / "mix_00.flac"
        if not file.is_file():
            pytest.skip(f"no {file}")
        wave = torch.from_numpy(soundfile.read(file, frames=2 * RATE)[0].T.copy())
    else:
        wave = reverberant(1.0, n_channels=4 if source.endswith("four") else 2)
    x = stft(wave)
    x = (x / spectrogram_level(power(x).mean(0), stft.window, RATE)).permute(1, 2, 0)  # [frame, freq, channel]
    n_sources, rank, n_iterations = 2, 4, 30
    np.random.seed(0)
    expected = pra.bss.fastmnmf2(x.numpy().copy(), n_sources, n_iterations, rank, mic_index="all")
    np.random.seed(0)
    activations = torch.from_numpy(np.random.rand(n_sources, rank, x.shape[0]))
    spectra = torch.from_numpy(np.random.rand(n_sources, x.shape[1], rank))
    sources = [known_nmf(spectra[n], activations[n].T) for n in range(n_sources)]
    space = partial(JointDiagonal, n_sources=n_sources)
    run = Separator(Front(stft, RATE), sources, [even_start(n_sources)], space, EMSettings(n_iterations))
    (found,) = run([x], levels=[1.0])
    difference = found.images.numpy() - expected.transpose(3, 1, 2, 0)
    assert np.abs(difference).max() < 1e-4 * np.abs(expected).max()
    assert float(found.objective.diff().max()) < 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_objective_falls_at_every_step_and_images_sum_to_the_mixture(dtype: torch.dtype) -> None:
    stft = STFT(512, 128).to(dtype)
    x = stft(reverberant(1.0).to(dtype)).movedim(0, -1)
    (found,) = rooms(stft, 2, 30)([x])
    assert found.images.dtype == x.dtype
    assert found.images.shape == (2, *x.shape)
    assert found.objective.diff().max() < 0
    assert (found.images.sum(0) - x).abs().max() <= 1e-5 * x.abs().max()
    assert all(image.abs().square().mean() > 0.01 * x.abs().square().mean() for image in found.images)


def swapped(sources: list[MakeSource], order: list[int]) -> list[MakeSource]:
    return [sources[n] for n in order]


@pytest.mark.usefixtures("double")
def test_other_orders_of_sources_and_microphones_and_other_levels_give_the_same_in_theirs() -> None:
    stft = STFT(256, 64).double()
    x = stft(reverberant(0.5, 3)).movedim(0, -1)
    n_frames, n_freqs, _ = x.shape
    spectra, activations = positive(2, n_freqs, 3), positive(2, n_frames, 3, seed=1)
    sources = [known_nmf(spectra[n], activations[n]) for n in range(2)]
    q = torch.eye(3, dtype=torch.complex128) + 0.2 * normal(1, n_freqs, 3, 3)
    gains = positive(2, 1, 1, 3, seed=2)

    def run(x: Tensor, q: Tensor, gains: Tensor, order: list[int]) -> Any:
        def space(mixture: Mixture, begun: Any) -> JointDiagonal:
            return JointDiagonal(mixture, (q, gains), 2)

        made = Separator(Front(stft, RATE), swapped(sources, order), [even_start(2)], space, EMSettings(10))
        return made([x])[0]

    one = run(x, q, gains, [0, 1])
    tolerance = 1e-7 * float(x.abs().max())
    other = run(x, q, gains[[1, 0]], [1, 0])
    torch.testing.assert_close(other.images[[1, 0]], one.images, rtol=0, atol=tolerance)
    torch.testing.assert_close(other.psds[[1, 0]], one.psds)
    torch.testing.assert_close(other.objective, one.objective)
    channels = [2, 0, 1]
    other = run(x[..., channels], q[..., channels], gains, [0, 1])
    torch.testing.assert_close(other.images, one.images[..., channels], rtol=0, atol=tolerance)
    torch.testing.assert_close(other.psds, one.psds)
    other = run(1e-3 * x, q, gains, [0, 1])
    torch.testing.assert_close(other.images, 1e-3 * one.images, rtol=0, atol=1e-3 * tolerance)
    torch.testing.assert_close(other.psds, 1e-6 * one.psds)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("options", [{}, {"per_frequency": True}, {"white": [1]}], ids=str)
def test_a_batch_of_two_lengths_equals_its_members(options: dict[str, Any]) -> None:
    stft = STFT(256, 64).double()
    xs = [stft(gain * reverberant(s, 3, seed=i)).movedim(0, -1) for i, (s, gain) in enumerate([(0.5, 1.0), (0.3, 9.0)])]
    run = rooms(stft, 2, 8, **options)
    for found, x, seed in zip(run(xs, [4, 2]), xs, [4, 2], strict=True):
        (alone,) = run([x], [seed])
        torch.testing.assert_close(found.images, alone.images, rtol=0, atol=1e-8 * float(x.abs().max()))
        torch.testing.assert_close(found.objective, alone.objective)
        torch.testing.assert_close(found.psds, alone.psds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_sources", [2, 4])
@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_recordings_give_finite_images_that_sum_to_them(name: str, n_sources: int, dtype: torch.dtype) -> None:
    stft = STFT(256, 64).to(dtype)
    x = stft(DAMAGE[name](reverberant(0.3, 3).to(dtype)).to(dtype)).movedim(0, -1)
    (found,) = rooms(stft, n_sources, 20)([x])
    for part in (found.images.abs(), found.psds, found.objective):
        assert torch.isfinite(part).all()
    largest = x.abs().max()
    assert (found.images.sum(0) - x).abs().max() <= 1e-5 * largest
    assert found.images.abs().max() <= 10 * largest
    if dtype == torch.float64:  # single precision sums up covariances of such recordings to a millionth alone
        assert found.objective.diff().max() <= 1e-6 * found.objective.abs().max()
