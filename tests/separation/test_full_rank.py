"""Full-rank covariances: against expectation maximisation bin by bin, and what must hold of any separator."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from conftest import RATE
from mixtures import dynamic_prior, random_spectrogram, reverberant
from spaces import LENGTHS, MORE_DAMAGE, N_FREQS, begun, mixture_of, normal, positive, positive_definite, psds_of
from torch import Tensor

from audiovae import STFT
from audiovae.separation import NMF, EMSettings, JointDiagonal, Mixture, Separator, even_start
from audiovae.separation.rooms import ROOM_METHODS
from audiovae.separation.rooms import separator as room_separator
from audiovae.separation.sources.floor import Floor
from audiovae.separation.spatial import full_rank as module
from audiovae.separation.spatial.demixing import Demixing
from audiovae.separation.spatial.full_rank import FullRank, FullRankPair, full_rank
from audiovae.stft import Front

# Updates -------------------------------------------------------------------------------------------------------------


def textbook(mixture: Mixture, psds: list[Tensor], h: Tensor, white: list[int]) -> Tensor:
    """H_n = mean over t of (posterior mean times itself + posterior covariance of the image) / lambda_n."""
    new = h.clone()
    for i, n_frames in enumerate(mixture.inside.sum(-1).tolist()):
        for f in range(N_FREQS):
            moments = torch.zeros_like(h[:, i, f])
            for t in range(n_frames):
                values = [psd[:, i, t, f].mean() for psd in psds]
                inverse = torch.linalg.inv(
                    sum(value * of_source[i, f] for value, of_source in zip(values, h, strict=True))
                )
                for n, value in enumerate(values):
                    gain = value * h[n, i, f] @ inverse
                    image = gain @ mixture.spectrogram[i, t, f]
                    covariance = value * h[n, i, f] - gain @ (value * h[n, i, f])
                    moments[n] += (torch.outer(image, image.conj()) + covariance) / value / n_frames
            for n in set(range(len(h))) - set(white):
                new[n, i, f] = moments[n]
    return new


@pytest.mark.parametrize("n_draws", [(1, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("white", [[], [1]])
@pytest.mark.parametrize("kind", [FullRank, FullRankPair])
def test_two_sources_follow_the_textbook(kind: Any, white: list[int], n_draws: tuple[int, ...]) -> None:
    mixture = mixture_of(3)
    psds = psds_of(mixture, *n_draws)
    space = kind(mixture, begun(mixture, 2), 2, white)
    for _ in range(3):
        expected = textbook(mixture, psds, space.h, white)
        space.update(psds)
        torch.testing.assert_close(space.h, expected, rtol=1e-10, atol=1e-10)
    assert (space.h[0] - begun(mixture, 2)[0]).abs().max() > 0.1


@pytest.mark.parametrize("n_sources", [3, 4])
def test_more_sources_follow_the_textbook_in_blocks_too(n_sources: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = mixture_of(2)
    psds = psds_of(mixture, *[1] * n_sources)
    space = FullRank(mixture, begun(mixture, n_sources), n_sources, white=[1])
    expected = textbook(mixture, psds, space.h, [1])
    whole = space.nll(psds), space.images(psds, [1]), space.view(psds, 0).information(psds[0])
    monkeypatch.setattr(module, "_BLOCK", 4 * 2 * N_FREQS)
    for one, other in zip(
        whole, (space.nll(psds), space.images(psds, [1]), space.view(psds, 0).information(psds[0])), strict=True
    ):
        torch.testing.assert_close(one, other)
    space.update(psds)
    torch.testing.assert_close(space.h, expected, rtol=1e-10, atol=1e-10)


def test_two_forms_stay_together() -> None:
    mixture = mixture_of(3, n_frames=[30, 20])
    psds = psds_of(mixture, 1, 1)
    one, two = (kind(mixture, begun(mixture, 2), 2) for kind in (FullRank, FullRankPair))
    for _ in range(20):
        one.update(psds)
        two.update(psds)
    torch.testing.assert_close(one.h, two.h, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.nll(psds), two.nll(psds), rtol=1e-5, atol=0)  # a little noise in the second
    torch.testing.assert_close(one.images(psds, [0, 1]), two.images(psds, [0, 1]), rtol=1e-6, atol=1e-8)
    assert type(full_rank(mixture, None, 2)) is FullRankPair
    assert type(full_rank(mixture, None, 3, [2])) is FullRank


@pytest.mark.parametrize("damage", ["none", "a microphone twice"])
@pytest.mark.parametrize(("kind", "n_sources", "white"), [(FullRank, 3, [1]), (FullRank, 3, []), (FullRankPair, 2, [])])
def test_no_update_increases_the_nll(kind: Any, n_sources: int, white: list[int], damage: str) -> None:
    """Eigenvalues at their bound included: without sound in a direction every H falls there."""
    mixture = mixture_of(3, n_frames=[30, 20])
    if damage != "none":
        mixture = Mixture.of(list(mixture.spectrogram[..., [0, 1, 1]]), torch.ones(2, dtype=torch.float64), [0, 0])
    psds = psds_of(mixture, *[1] * n_sources)
    space = kind(mixture, begun(mixture, n_sources), n_sources, white)
    trace = []
    for _ in range(40):
        trace.append(mixture.mean_over_frames(space.nll(psds)))
        space.update(psds)
        assert torch.allclose(space.h, space.h.mH, atol=1e-12)
    steps = torch.stack(trace).diff(dim=0)
    assert steps.max() <= 1e-9 * trace[0].abs().max()
    assert (trace[-1] < trace[0] - 1).all()
    for n in range(n_sources):
        assert torch.equal(space.h[n], torch.eye(3).expand_as(space.h[n])) == (n in white)


def test_a_start_is_not_written_into_and_another_number_of_sources_is_refused() -> None:
    mixture = mixture_of(3)
    h = begun(mixture, 3)
    before = h.clone()
    FullRank(mixture, h, 3, [2]).update(psds_of(mixture, 1, 1, 1))
    assert torch.equal(h, before)
    with pytest.raises(ValueError, match="one of each of 2 sources, got 3"):
        FullRankPair(mixture, h, 2)
    with pytest.raises(ValueError, match=r"equally many channels, got \[2, 3\]"):
        FullRank(Mixture.of([normal(4, 3, 2), normal(4, 3, 3)], torch.ones(2, dtype=torch.float64), [0, 0]))


# Filters -------------------------------------------------------------------------------------------------------------

ORACLES: dict[str, Any] = {
    "full": FullRank,
    "pair": FullRankPair,
    "joint": partial(JointDiagonal, per_frequency=True),
}


@pytest.mark.parametrize("name", ORACLES)
def test_true_psds_and_covariances_give_the_filter_whose_errors_are_the_posterior_variances(name: str) -> None:
    """Of sources drawn from the model: lambda tr(H - lambda H Y^-1 H), and any other filter does worse."""
    n_frames, n_freqs, n_channels = 3000, 2, 3
    psds, h = positive(2, n_frames, n_freqs).square(), positive_definite(2, n_freqs, n_channels)
    draws = torch.einsum("nfij,ntfj->ntfi", torch.linalg.cholesky(h), normal(2, n_frames, n_freqs, n_channels))
    truth = psds.sqrt().unsqueeze(-1) * draws
    mixture = Mixture.of([truth.sum(0)], torch.ones(1, dtype=torch.float64), [0])
    space = ORACLES[name](mixture, h.unsqueeze(1), 2)
    found = space.images(list(psds[:, None, None]), [0])[:, 0]
    own = psds[..., None, None] * h.unsqueeze(1)
    posterior = own - own @ torch.linalg.solve(own.sum(0), own)
    expected = torch.einsum("ntfii->n", posterior).real / n_frames

    def error(images: Tensor) -> Tensor:
        return (images - truth).abs().square().sum((1, 2, 3)) / n_frames

    torch.testing.assert_close(error(found), expected, rtol=0.03, atol=0)
    filtered = own @ torch.linalg.solve(own.sum(0), truth.sum(0).unsqueeze(-1))
    torch.testing.assert_close(found, filtered.squeeze(-1), rtol=1e-4, atol=1e-4)
    wrong = ORACLES[name](mixture, h[[1, 0]].unsqueeze(1), 2).images(list(psds[:, None, None]), [0])[:, 0]
    assert (error(wrong) > 1.05 * error(found)).all()


@pytest.mark.parametrize(("kind", "n_sources"), [(FullRank, 3), (FullRankPair, 2)])
def test_other_orders_of_sources_and_microphones_and_other_scales_give_the_same_in_theirs(
    kind: Any, n_sources: int
) -> None:
    mixture = mixture_of(3)
    psds, h = psds_of(mixture, *[1] * n_sources), begun(mixture, n_sources)
    sources, channels = list(range(n_sources))[::-1], [2, 0, 1]

    def run(spectrogram: Tensor, psds: list[Tensor], h: Tensor) -> tuple[Tensor, Tensor]:
        spectrograms = [x[:n] for x, n in zip(spectrogram, LENGTHS, strict=True)]
        again = Mixture.of(spectrograms, torch.ones(2, dtype=torch.float64), [0, 0], padding=2)
        space = kind(again, h, n_sources)
        for _ in range(5):
            space.update(psds)
        return space.images(psds, [0, 1]), space.h

    x = mixture.spectrogram
    images, fitted = run(x, psds, h)
    close = partial(torch.testing.assert_close, rtol=1e-7, atol=1e-8)
    other, h_other = run(x, [psds[n] for n in sources], h[sources])
    close(other[sources], images)
    close(h_other[sources], fitted)
    other, h_other = run(x[..., channels], psds, h[..., channels, :][..., channels])
    close(other, images[..., channels])
    close(h_other, fitted[..., channels, :][..., channels])
    other, h_other = run(3 * x, psds, 9 * h)
    close(other, 3 * images)
    close(h_other, 9 * fitted)


# The whole -----------------------------------------------------------------------------------------------------------

SPACES: dict[str, Any] = {
    "full": partial(full_rank, n_sources=3, white=[2]),
    "joint": partial(JointDiagonal, n_sources=3, per_frequency=True, white=[2], update="iss"),
    "demixing": partial(Demixing, n_sources=2),
}


def separator(space: str, n_iterations: int, dtype: torch.dtype) -> Separator:
    return Separator(
        Front(STFT(256, 64).to(dtype), RATE),
        [*[partial(NMF, rank=3)] * 2, Floor],
        [even_start(3)],
        SPACES[space],
        EMSettings(n_iterations),
    )


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("space", SPACES)
def test_a_batch_of_two_lengths_and_levels_equals_its_members(space: str) -> None:
    run = separator(space, 5, torch.float64)
    xs = [
        run.front.stft(gain * reverberant(s, 3, seed=i)).movedim(0, -1)
        for i, (s, gain) in enumerate([(0.2, 1.0), (0.1, 9.0)])
    ]
    for found, x, seed in zip(run(xs, [4, 2]), xs, [4, 2], strict=True):
        (alone,) = run([x], [seed])
        torch.testing.assert_close(found.images, alone.images, rtol=0, atol=1e-8 * float(x.abs().max()))
        torch.testing.assert_close(found.objective, alone.objective)
        torch.testing.assert_close(found.psds, alone.psds)
        (louder,) = run([1e3 * x], [seed])
        torch.testing.assert_close(louder.images, 1e3 * alone.images, rtol=0, atol=1e-5 * float(x.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", MORE_DAMAGE)
def test_damaged_recordings_give_finite_images_that_sum_to_them(name: str, space: str, dtype: torch.dtype) -> None:
    run = separator(space, 6, dtype)
    x = run.front.stft(MORE_DAMAGE[name](reverberant(0.2, 3).to(dtype)).to(dtype)).movedim(0, -1)
    (found,) = run([x])
    for part in (found.images.abs(), found.psds, found.objective):
        assert torch.isfinite(part).all()
    largest = x.abs().max()
    assert found.images.dtype == x.dtype
    assert (found.images.sum(0) - x).abs().max() <= 1e-5 * largest
    assert found.images.abs().max() <= 100 * largest
    if space == "full":
        slack = 1e-9 if dtype == torch.float64 else 1e-4
        assert found.objective.diff().max() <= slack * found.objective.abs().max()


def test_single_precision_is_as_good_as_double() -> None:
    found = []
    x = random_spectrogram(60, 9, 3)
    for dtype in (torch.complex64, torch.complex128):
        mixture = Mixture.of([x.to(dtype)], torch.ones(1, dtype=dtype.to_real()), [0])
        for kind in (FullRank, FullRankPair):
            space = kind(mixture, None, 2)
            psds = [psd.to(dtype.to_real()) for psd in psds_of(mixture, 1, 1)]
            for _ in range(10):
                space.update(psds)
            found.append(space.images(psds, [0])[0].to(torch.complex128))
    for other in found[:3]:
        assert (other - found[3]).abs().max() < 1e-3 * x.abs().max()


def test_more_sources_than_microphones_are_taken_by_covariances_and_refused_by_demixing() -> None:
    mixture = mixture_of(2)
    psds = psds_of(mixture, 1, 1, 1)
    for space in (FullRank(mixture, None, 3), JointDiagonal(mixture, None, 3)):
        for _ in range(3):
            space.update(psds)
        assert torch.isfinite(space.images(psds, [0, 1]).abs()).all()
    with pytest.raises(ValueError, match="as many channels as sources, got 2 and 3"):
        Demixing(mixture, n_sources=3)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", ["fca", "fca-dp"])
def test_the_pairs_by_name_take_a_batch_apart_as_its_members(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through everything: independent vector analysis at another window, masks, sources, and the noise that is left."""
    prior = None if name == "fca" else dynamic_prior()
    if prior is not None:
        prior.double()
    brief = replace(ROOM_METHODS[name].settings, n_iterations=3, warm_up=1)
    monkeypatch.setitem(ROOM_METHODS, name, replace(ROOM_METHODS[name], settings=brief, starts=(0.064,), window=0.032))
    run = room_separator(2, name, prior, RATE)
    waves = [reverberant(0.4, 3), reverberant(0.3, 3, seed=7)]
    xs = [run.front.stft.double()(wave).movedim(0, -1) for wave in waves]
    for found, x, wave in zip(run(xs, waves=waves), xs, waves, strict=True):
        torch.testing.assert_close(found.images.sum(0), x)
        assert found.images.shape == (3, *x.shape)
        assert (found.images[:2].abs().square().mean((1, 2, 3)) > 1e-3 * x.abs().square().mean()).all()
        (alone,) = run([x], waves=[wave])
        torch.testing.assert_close(found.images, alone.images, rtol=0, atol=1e-5 * float(x.abs().max()))
        torch.testing.assert_close(found.objective, alone.objective)
        assert found.objective[-1] < found.objective[0]
