"""Pictures of spectrograms, latents and their information, and of speech and noise."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

RANGE_DB = 80.0  # below the loudest bin: black
_ACTIVE_COLOUR, _COLLAPSED_COLOUR = "#d9622b", "#b9b4ad"


def decibels(powers: list[Float[Tensor, "frame freq"]]) -> list[NDArray[np.float64]]:
    """Powers in dB below the loudest bin of all of them, at least -80, `[frame, freq]` each."""
    loudest = max(float(power.max()) for power in powers) or 1.0
    floor = 10 ** (-RANGE_DB / 10)
    return [10 * torch.log10((power / loudest).clamp(min=floor)).double().numpy(force=True) for power in powers]


def decibel_image(powers: list[Float[Tensor, "frame freq"]]) -> NDArray[np.uint8]:
    """Spectrograms one above the other on one scale, `[3, height, width]`, low frequencies at the bottom."""
    from matplotlib import colormaps

    stacked = np.concatenate([image.T[::-1] for image in decibels(powers)])
    colours = colormaps["magma"](1 + stacked / RANGE_DB)[..., :3]
    return (255 * colours).astype(np.uint8).transpose(2, 0, 1)


def spectrogram_and_psd(
    power: Float[Tensor, "frame freq"],
    psd: Float[Tensor, "frame freq"],
    latents: Float[Tensor, "frame latent"],
    kl: Float[Tensor, " latent"],
    sample_rate: int,
    hop_length: int,
) -> bytes:
    """A PNG: spectrogram beside PSD on one scale, below them the most informative latents and the KL per dimension.

    Args:
        power, psd: of one recording.
        latents: posterior means.
        kl: nats per dimension over the recording; where there is no such split, latents are ranked by how much they
            move.
    """
    figure, axes = _figure(2, 2, (13.0, 6.4), [1.5, 1.0])
    seconds = len(power) * hop_length / sample_rate
    image = None
    for axis, name, values in zip(axes[0], ("Spectrogram |x|²", "Decoded PSD"), decibels([power, psd]), strict=True):
        image = _spectrogram(axis, name, values, seconds, sample_rate, cmap="magma", vmin=-RANGE_DB, vmax=0)
    figure.colorbar(image, ax=list(axes[0]), label="dB below the loudest bin", pad=0.01)
    order = torch.argsort(kl if len(kl) == latents.shape[-1] else latents.std(0, correction=0), descending=True).cpu()
    shown = latents.cpu()[:, order[: min(32, len(order))]].T.double().numpy(force=True)
    image = axes[1][0].imshow(
        shown, aspect="auto", cmap="RdBu_r", vmin=-3, vmax=3, extent=(0, seconds, len(shown) + 0.5, 0.5)
    )
    axes[1][0].set(
        title="Latents over time (posterior mean, most informative first)",
        xlabel="time (s)",
        ylabel="rank of dimension",
    )
    figure.colorbar(image, ax=axes[1][0], pad=0.01)
    _kl_bars(axes[1][1], kl)
    return _png(figure)


def kl_per_dimension(kl: Float[Tensor, " latent"]) -> bytes:
    """A PNG: the KL of every latent dimension, sorted."""
    figure, axes = _figure(1, 1, (8.0, 2.8), [1.0])
    _kl_bars(axes[0][0], kl)
    return _png(figure)


def separation(
    powers: Float[Tensor, "3 frame freq"],
    psds: Float[Tensor, "2 frame freq"],
    wiener: Float[Tensor, "frame freq"],
    activity: Float[Tensor, " frame"],
    gain: Float[Tensor, " frame"],
    sample_rate: int,
    hop_length: int,
) -> bytes:
    """A PNG, all of it over one time axis: what is heard on the left, what the model says of it on the right.

    Args:
        powers: |x|² of the noisy recording, of its speech, and of what was taken away.
        psds: the variances of speech and noise, at the level of the powers: the five are drawn on one scale.
        wiener: gain of every bin, from 0 to 1.
        activity: the speech's share of the variance, from 0 to 1.
        gain: g_t of the speech's variance, positive.
    """
    figure, axes = _figure(4, 2, (13.0, 11.0), [1.0, 1.0, 1.0, 0.7], sharex=True)
    seconds = len(wiener) * hop_length / sample_rate
    names = (
        "Noisy |x|²",
        "Enhanced |s|²",
        "Residual |x - s|²",
        "Variance of the speech g c v",
        "Variance of the noise N",
    )
    image = None
    for axis, name, values in zip([*axes[:3, 0], *axes[1:3, 1]], names, decibels([*powers, *psds]), strict=True):
        image = _spectrogram(axis, name, values, seconds, sample_rate, cmap="magma", vmin=-RANGE_DB, vmax=0)
    figure.colorbar(image, ax=list(axes[1:3, 1]), label="dB below the loudest bin of the five", pad=0.01)
    image = _spectrogram(
        axes[0, 1],
        "Wiener gain",
        wiener.double().numpy(force=True),
        seconds,
        sample_rate,
        cmap="cividis",
        vmin=0,
        vmax=1,
    )
    figure.colorbar(image, ax=axes[0, 1], label="share kept", pad=0.01)
    times = (np.arange(len(wiener)) + 0.5) * hop_length / sample_rate
    gain_db = 10 * torch.log10(gain).double().numpy(force=True)
    axes[3, 0].plot(times, activity.double().numpy(force=True), color=_ACTIVE_COLOUR, linewidth=1)
    axes[3, 0].set(
        title="Activity: the speech's share of the variance", xlabel="time (s)", ylabel="share", ylim=(-0.03, 1.03)
    )
    axes[3, 1].plot(times, gain_db, color=_ACTIVE_COLOUR, linewidth=1)
    limits = (min(-10.0, gain_db.min() - 1), max(10.0, gain_db.max() + 1))
    axes[3, 1].set(title="Gain g of the speech's variance", xlabel="time (s)", ylabel="gain (dB)", ylim=limits)
    return _png(figure)


def sources(
    powers: Float[Tensor, "source frame freq"],
    psds: Float[Tensor, "source frame freq"],
    names: list[str],
    sample_rate: int,
    hop_length: int,
) -> bytes:
    """A PNG: of every source, one above the other, what is heard beside what the model says of it, on one scale.

    Args:
        powers: |x|² of what is heard.
        psds: the variances, at the level of the powers.
        names: of the sources.
    """
    figure, axes = _figure(len(names), 2, (13.0, 2.7 * len(names)), [1.0] * len(names), sharex=True)
    seconds = powers.shape[1] * hop_length / sample_rate
    titles = [title for name in names for title in (f"{name}: |x|²", f"{name}: variance")]
    values = decibels([picture for pair in zip(powers, psds, strict=True) for picture in pair])
    image = None
    for axis, title, shown in zip(axes.flat, titles, values, strict=True):
        image = _spectrogram(axis, title, shown, seconds, sample_rate, cmap="magma", vmin=-RANGE_DB, vmax=0)
    figure.colorbar(image, ax=list(axes[:, 1]), label="dB below the loudest bin of all", pad=0.01)
    for axis in axes[-1]:
        axis.set(xlabel="time (s)")
    return _png(figure)


def directions(responses: Float[Tensor, "source azimuth"], names: list[str]) -> bytes:
    """A PNG: how much of every source comes from each azimuth, and where most of it does."""
    figure, axes = _figure(1, 1, (8.0, 2.8), [1.0])
    axis = axes[0][0]
    azimuths = np.arange(responses.shape[1]) * 360 / responses.shape[1]
    for name, response in zip(names, responses.double().numpy(force=True), strict=True):
        (line,) = axis.plot(azimuths, response, label=name)
        axis.axvline(azimuths[response.argmax()], color=line.get_color(), linestyle=":")
    axis.set(title="Steered response of each source", xlabel="azimuth (degrees)", ylabel="response", xlim=(0, 360))
    axis.set_xticks(range(0, 361, 45))
    axis.legend()
    return _png(figure)


def objective(values: Float[Tensor, " iteration"], converged: bool) -> bytes:
    """A PNG: the objective after every iteration, in nats per frame, and whether it stopped by itself."""
    figure, axes = _figure(1, 1, (8.0, 2.8), [1.0])
    axis = axes[0][0]
    axis.plot(np.arange(1, len(values) + 1), values.double().numpy(force=True), "o-", color=_ACTIVE_COLOUR)
    end = "converged" if converged else "not converged, stopped at the limit"
    axis.set(title=f"Objective (lower is better): {end}", xlabel="iteration", ylabel="nats per frame")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.ticklabel_format(axis="y", useOffset=False)
    return _png(figure)


def _spectrogram(
    axis: Any, name: str, values: NDArray[np.float64], seconds: float, sample_rate: int, **colours: Any
) -> Any:
    """Draw `[frame, freq]`, low frequencies at the bottom."""
    axis.set(title=name, ylabel="frequency (kHz)")
    return axis.imshow(values.T, origin="lower", aspect="auto", extent=(0, seconds, 0, sample_rate / 2000), **colours)


def _kl_bars(axis: Any, kl: Tensor) -> None:
    from audiovae.objectives import ACTIVE_NATS

    values = torch.sort(kl, descending=True).values.double().numpy(force=True)
    colours = [_ACTIVE_COLOUR if value > ACTIVE_NATS else _COLLAPSED_COLOUR for value in values]
    axis.bar(np.arange(1, len(values) + 1), values, color=colours, width=0.85)
    active = int((values > ACTIVE_NATS).sum())
    axis.set(
        title=f"KL per dimension: {values.sum():.1f} nats, {active} of {len(values)} active",
        xlabel="rank of dimension",
        ylabel="nats per frame",
    )


def _figure(
    rows: int, columns: int, size: tuple[float, float], heights: list[float], sharex: bool = False
) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=sharex, height_ratios=heights)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()
