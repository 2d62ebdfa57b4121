"""The noise that is always there."""

from __future__ import annotations

import numpy as np
import torch
from mixtures import random_spectrogram
from spaces import mixture_of

from audiovae.distributions.complex_normal import VARIANCE_FLOOR
from audiovae.separation import Mixture
from audiovae.separation.sources.floor import Floor
from audiovae.separation.spatial.single_channel import SingleChannel


def test_a_floor_is_half_of_the_least_power_and_no_more_than_a_low_quantile() -> None:
    """Over the frequencies with sound; the same in all frames, and no update changes it."""
    spectrograms = [random_spectrogram(n, 12, 3, seed) for seed, n in enumerate((40, 30))]
    for x in spectrograms:
        x[:, 9:] *= 1e-5
        x[:, :2] *= 10
    mixture = Mixture.of(spectrograms, torch.ones(2, dtype=torch.float64), [0, 0], padding=2)
    source = Floor(mixture)
    found = source.psd()
    for i, x in enumerate(spectrograms):
        least = np.array(
            [np.linalg.eigvalsh(x[:, f].numpy().T @ x[:, f].numpy().conj() / len(x))[0] for f in range(12)]
        )
        expected = np.maximum(np.minimum(np.quantile(least[:9], 0.3), least / 2), VARIANCE_FLOOR)
        assert (expected[:9] < 0.9 * least[:9] / 2).any()
        np.testing.assert_allclose(found[0, i].numpy(), np.broadcast_to(expected, found[0, i].shape), rtol=1e-7)
    source.update(SingleChannel(mixture).view([found, found], 1), 1.0)
    assert torch.equal(source.psd(), found)


def test_a_dead_microphone_leaves_the_least_that_a_psd_may_be() -> None:
    mixture = mixture_of(2)
    dead = Mixture.of([mixture.spectrogram[0, :9] * torch.tensor([1.0, 0.0])], torch.ones(1, dtype=torch.float64), [0])
    assert (Floor(dead).psd() == VARIANCE_FLOOR).all()
