"""Where separation in space begins: independent vector analysis at a window longer than a room's reverberation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.level import spectrogram_level
from audiovae.separation.delays import order_by_delays
from audiovae.separation.em import Separator
from audiovae.separation.mixture import Mixture
from audiovae.separation.sources.envelope import Envelope
from audiovae.separation.spatial.demixing import Demixing
from audiovae.separation.starts import Beginning, Start
from audiovae.stft import STFT, Front, power

LOWER_HZ, HIGHEST_HZ = 3200.0, 5000.0
_LEAST_FRAMES, _SHORTEST_SECONDS = 45, 0.016
_TINY = 1e-6

Images = Callable[[Mixture], Float[Tensor, "source recording channel sample"]]
"""Takes mixtures apart, as waves at unit level."""


def iva(front: Front, n_sources: int, n_iterations: tuple[int, int] = (20, 10)) -> Images:
    """Independent vector analysis: each source sounds at all frequencies at once, from one direction.

    A voice's lower and higher frequencies often do not sound at the same time, so that bands change places. Hence at
    first the lower ones alone tell when a source sounds; then directions say whose row is whose at every frequency; and
    from there higher ones are heard too. Above 5 kHz speech is faint beside the microphones' own noise.

    Args:
        front: of the longest window, which is longer than most of the reverberation; a recording that has too few such
            frames gets half of it, and so on.
        n_iterations: before and after directions are looked at.

    Reference: see `Envelope`, `Demixing` and `order_by_delays`.
    """

    def images(mixture: Mixture) -> Float[Tensor, "source recording channel sample"]:
        if mixture.waves is None:
            raise ValueError("independent vector analysis needs the waves of the mixtures, and none were given")
        windows = [_window(front, n) for n in mixture.n_samples]
        sound = mixture.waves.new_zeros(n_sources, *mixture.waves.shape)
        for window in set(windows):
            where = [i for i, of_one in enumerate(windows) if of_one == window]
            shorter = Front(STFT(window, window // 4, front.stft.window_name), front.sample_rate)
            sound[:, where] = _images(mixture.only(where), shorter, n_sources, n_iterations)
        return sound

    return images


def _window(front: Front, n_samples: int) -> int:
    """The longest window of which a recording has enough frames."""
    n_fft = front.stft.n_fft
    while n_samples < (_LEAST_FRAMES - 1) * n_fft // 4 and n_fft // 2 >= _SHORTEST_SECONDS * front.sample_rate:
        n_fft = n_fft // 8 * 4
    return n_fft


def _images(
    mixture: Mixture, front: Front, n_sources: int, n_iterations: tuple[int, int]
) -> Float[Tensor, "source recording channel sample"]:
    stft = front.stft.to(mixture.power)
    seen = mixture.through(stft)
    space = Demixing(seen, n_sources=n_sources)
    for n, highest_hz in zip(n_iterations, (LOWER_HZ, HIGHEST_HZ), strict=True):
        if highest_hz == HIGHEST_HZ:
            space.reorder(order_by_delays(space.columns(), front))
        sources = [Envelope(seen, seen.power, n_counted=bins_below(front, highest_hz)) for _ in range(n_sources)]
        for _ in range(n):
            for i, source in enumerate(sources):
                source.update(space.view([], i), 1.0)
            space.update([source.psd() for source in sources])
    found = space.images([seen.power.unsqueeze(0)] * (n_sources + 1), range(len(seen.power)))
    return mixture.sound(stft, found[:n_sources])


def bins_below(front: Front, hz: float) -> int:
    """How many of the front's frequencies are no higher."""
    return 1 + int(hz * front.stft.n_fft / front.sample_rate)


def image_start(front: Front, images: Images, n_more: int = 0) -> Start:
    """PSDs from images: the mean over microphones of each one's, at unit level, and these levels.

    Args:
        n_more: sources beyond, such as a floor, which know by themselves where they begin.
    """

    def start(mixture: Mixture) -> Beginning:
        found = images(mixture)
        psds = power(front.stft(found)).mean(2)
        short = mixture.power.shape[1] - psds.shape[2]
        psds = torch.nn.functional.pad(psds, (0, 0, 0, short)) * mixture.inside.unsqueeze(-1)
        if front.level_rule == "peak":
            levels = found.abs().amax((2, 3))
        else:
            window, rate = front.stft.window, front.sample_rate
            levels = torch.stack([torch.stack([spectrogram_level(p, window, rate) for p in ps]) for ps in psds])
        levels = levels.clamp(min=_TINY)
        unit = psds / levels.square()[..., None, None]
        nothing = torch.zeros_like(mixture.power)
        return Beginning(
            [*unit, *[nothing] * n_more], levels=torch.cat([levels, levels.new_ones(n_more, levels.shape[1])])
        )

    return start


def told_by(separator: Separator) -> Images:
    """The images that a separator of one microphone finds at each of several, by one gain for all."""

    def images(mixture: Mixture) -> Float[Tensor, "source recording channel sample"]:
        assert mixture.waves is not None
        stft = separator.front.stft
        waves = [wave[:, :n] for wave, n in zip(mixture.waves, mixture.n_samples, strict=True)]
        found = separator([stft(wave).movedim(0, -1) for wave in waves], levels=[1.0] * len(waves), waves=waves)
        out = mixture.waves.new_zeros(len(found[0].images), *mixture.waves.shape)
        for i, (separation, wave) in enumerate(zip(found, waves, strict=True)):
            out[:, i, :, : wave.shape[-1]] = stft.inverse(separation.images.movedim(-1, 1), wave.shape[-1])
        return out

    return images
