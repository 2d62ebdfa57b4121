"""Pictures of spectrograms, latents and their information, of speech and noise: one panel each, as SVG inside a page.

Text and lines have the colours of the page, by its variables, so that they are seen in the light and in the dark.
"""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

RANGE_DB = 80.0  # below the loudest bin: black
_SIZE_INCHES = (4.2, 2.1)  # small, so that its 9 points can be read on a phone
_DOTS_PER_INCH = 160
_WEBP_QUALITY = 75
_INK, _FIRST, _SECOND, _IDLE = "#010101", "#0072b2", "#d55e00", "#8a8d91"
_VARIABLES = {"#010101": "currentColor", "#000000": "currentColor", _FIRST: "var(--first)", _SECOND: "var(--second)"}
_SOURCES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito
_DASHES = ("-", "--", "-.", ":")


def decibels(powers: list[Float[Tensor, "frame _"]]) -> list[NDArray[np.float64]]:
    """Powers in dB re the loudest bin of all of them, from -80 to 0, `[frame, freq]` each, of any number of
    bins.
    """
    loudest = max(float(power.max()) for power in powers) or 1.0
    floor = 10 ** (-RANGE_DB / 10)
    return [10 * torch.log10((power / loudest).clamp(min=floor)).double().numpy(force=True) for power in powers]


def spectrogram(values_db: Float[np.ndarray, "frame freq"], frame_seconds: float, sample_rate: int) -> str:
    """A spectrogram, or the decoder's PSD or a source's variance, in the dB of `decibels`.

    Args:
        frame_seconds: from one frame to the next.
    """
    figure, axis = _figure()
    _spectrogram(axis, values_db, frame_seconds, sample_rate)
    return _svg(figure)


def wiener_gain(gain: Float[Tensor, "frame freq"], frame_seconds: float, sample_rate: int) -> str:
    """The share of every bin that is kept, from 0 to 1."""
    figure, axis = _figure()
    _over_time(axis, gain.double().numpy(force=True).T, frame_seconds, (0.0, sample_rate / 2000), "cividis", (0.0, 1.0))
    axis.set(ylabel="frequency (kHz)")
    return _svg(figure)


def latents(means: Float[Tensor, "frame latent"], kl: Float[Tensor, " latent"], frame_seconds: float) -> str:
    """The posterior means of the most informative latents over time, at most 32.

    Args:
        kl: nats per dimension over the recording; where there is no such split, latents are ranked by how much they
            move.
    """
    order = torch.argsort(kl if len(kl) == means.shape[-1] else means.std(0, correction=0), descending=True).cpu()
    shown = means.cpu()[:, order[: min(32, len(order))]].T.double().numpy(force=True)
    figure, axis = _figure()
    _over_time(axis, shown[::-1], frame_seconds, (len(shown) + 0.5, 0.5), "RdBu_r", (-3.0, 3.0))
    axis.set(ylabel="rank of dimension")
    return _svg(figure)


def kl_per_dimension(kl: Float[Tensor, " latent"]) -> str:
    """The KL of every latent dimension, sorted; what is active in another colour."""
    figure, axis = _figure()
    _kl_bars(axis, kl)
    return _svg(figure)


def over_time(values: Float[Tensor, " frame"], frame_seconds: float, label: str, limits: tuple[float, float]) -> str:
    """A curve, one value a frame.

    Args:
        label: of the values, with their unit.
        limits: that are seen at least.
    """
    figure, axis = _figure()
    curve = values.double().numpy(force=True)
    axis.plot(np.arange(len(curve)) * frame_seconds, curve, color=_FIRST, linewidth=1)
    low = limits[0] if limits[0] <= curve.min() else 1.1 * curve.min()
    high = limits[1] if limits[1] >= curve.max() else 1.1 * curve.max()
    axis.set(xlabel="time (s)", ylabel=label, xlim=_times(len(curve), frame_seconds), ylim=(low, high))
    return _svg(figure)


def psd_over_power(power: Float[Tensor, " freq"], psd: Float[Tensor, " freq"], sample_rate: int) -> str:
    """One frame: the PSD of a decoder over the power that it stands for, in dB; what is far below both is cut."""
    figure, axis = _figure()
    loudest = max(float(power.max()), float(psd.max())) or 1.0
    khz = np.linspace(0, sample_rate / 2000, len(power))
    for values, name, colour, width in ((power, "power", _IDLE, 0.8), (psd, "PSD", _FIRST, 1.6)):
        values_db = 10 * torch.log10((values / loudest).clamp(min=10 ** (-RANGE_DB / 10)))
        axis.plot(khz, values_db.double().numpy(force=True), label=name, color=colour, linewidth=width)
    axis.set(xlabel="frequency (kHz)", ylabel="dB re its peak", xlim=(0, khz[-1]), ylim=(-RANGE_DB, 3))
    axis.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0, fontsize=9)
    return _svg(figure)


def directions(responses: Float[Tensor, "source azimuth"], names: list[str]) -> str:
    """How much of every source comes from each azimuth, and where most of it does."""
    figure, axis = _figure()
    azimuths = np.arange(responses.shape[1]) * 360 / responses.shape[1]
    for n, (name, response) in enumerate(zip(names, responses.double().numpy(force=True), strict=True)):
        colour, dashes = _SOURCES[n % len(_SOURCES)], _DASHES[n % len(_DASHES)]
        axis.plot(azimuths, response, label=name, color=colour, linestyle=dashes)
        axis.axvline(azimuths[response.argmax()], color=colour, linestyle=dashes, linewidth=1)
    axis.set(xlabel="azimuth (degrees)", ylabel="steered response", xlim=(0, 360))
    axis.set_xticks(range(0, 361, 45))
    axis.legend(frameon=False)
    return _svg(figure)


def objective(values: Float[Tensor, " iteration"]) -> str:
    """The objective after every iteration, in nats per frame."""
    figure, axis = _figure()
    axis.plot(np.arange(1, len(values) + 1), values.double().numpy(force=True), "o-", color=_FIRST, markersize=4)
    axis.set(xlabel="iteration", ylabel="nats per frame")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.ticklabel_format(axis="y", useOffset=False)
    return _svg(figure)


def spectrogram_pixels(
    powers: dict[str, Float[Tensor, "frame freq"]], frame_seconds: float, sample_rate: int
) -> NDArray[np.uint8]:
    """Spectrograms one above the other on one scale, each below its name, `[height, width, 3]`: for TensorBoard."""
    figure, axes = _figure(len(powers), (7.0, 2.8 * len(powers)))
    for axis, name, values in zip(axes, powers, decibels(list(powers.values())), strict=True):
        image = _spectrogram(axis, values, frame_seconds, sample_rate)
        axis.set_title(name)
    figure.colorbar(image, ax=list(axes), label="dB re the loudest bin", pad=0.01)
    return _pixels(figure)


def kl_pixels(kl: Float[Tensor, " latent"]) -> NDArray[np.uint8]:
    """`kl_per_dimension`, `[height, width, 3]`: for TensorBoard."""
    figure, axes = _figure(1, (7.0, 2.8))
    _kl_bars(axes[0], kl)
    axes[0].set_title(kl_summary(kl))
    return _pixels(figure)


def kl_summary(kl: Float[Tensor, " latent"]) -> str:
    """How many nats a frame has, and how many dimensions carry them."""
    from audiovae.objectives import ACTIVE_NATS

    return f"{float(kl.sum()):.1f} nats per frame, {int((kl > ACTIVE_NATS).sum())} of {len(kl)} dimensions active"


def _spectrogram(axis: Any, values_db: NDArray[np.float64], frame_seconds: float, sample_rate: int) -> Any:
    axis.set(ylabel="frequency (kHz)")
    return _over_time(axis, values_db.T, frame_seconds, (0.0, sample_rate / 2000), "magma", (-RANGE_DB, 0.0))


def _over_time(
    axis: Any,
    values: NDArray[np.float64],
    frame_seconds: float,
    heights: tuple[float, float],
    colours: str,
    limits: tuple[float, float],
) -> Any:
    """Draw `[height, frame]`, the first row at the bottom; frame t is at t hops, where its window has its middle.

    Args:
        heights: of the bottom and the top.
    """
    n_frames, half = values.shape[1], 0.5 * frame_seconds
    extent = (-half, n_frames * frame_seconds - half, *heights)
    low, high = limits
    image = axis.imshow(values, origin="lower", aspect="auto", extent=extent, cmap=colours, vmin=low, vmax=high)
    axis.set(xlabel="time (s)", xlim=_times(n_frames, frame_seconds))
    return image


def _times(n_frames: int, frame_seconds: float) -> tuple[float, float]:
    return 0.0, max(1, n_frames - 1) * frame_seconds


def _kl_bars(axis: Any, kl: Tensor) -> None:
    from audiovae.objectives import ACTIVE_NATS

    values = torch.sort(kl, descending=True).values.double().numpy(force=True)
    colours = [_SECOND if value > ACTIVE_NATS else _IDLE for value in values]
    axis.bar(np.arange(1, len(values) + 1), values, color=colours, width=0.85)
    axis.set(xlabel="rank of dimension", ylabel="nats per frame")


def _figure(n_rows: int | None = None, size: tuple[float, float] = _SIZE_INCHES) -> tuple[Any, Any]:
    """A figure and its axis; or a list of them, one above the other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(n_rows or 1, 1, squeeze=False)[:, 0]
    for axis in axes:
        for item in (axis.xaxis.label, axis.yaxis.label):
            item.set_fontsize(9)
        axis.tick_params(labelsize=9)
    return figure, axes[0] if n_rows is None else axes


def _pixels(figure: Any) -> NDArray[np.uint8]:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def _svg(figure: Any) -> str:
    """Markup that stands in a page: its pixels as WebP, its colours those of the page, no name that is not used."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "audiovae"}):
        figure.savefig(buffer, format="svg", dpi=_DOTS_PER_INCH, transparent=True)
    drawn = buffer.getvalue()
    drawn = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", drawn[drawn.index("<svg") :], flags=re.DOTALL
    )
    drawn = re.sub(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)", lambda found: _webp(found[1]), drawn)
    view_box = re.search(r'viewBox="[^"]*"', drawn)
    assert view_box is not None
    drawn = re.sub(r"<svg[^>]*>", f'<svg {view_box[0]} aria-hidden="true">', drawn, count=1)
    drawn = re.sub(r"font-family: [^;\"]*;? ?", "", drawn.replace("xlink:href", "href"))
    for colour, variable in _VARIABLES.items():
        drawn = drawn.replace(colour, variable)
    used = set(re.findall(r"#([\w-]+)", drawn))
    drawn = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", drawn)
    return re.sub(r"\s*\n\s*", "\n", drawn).strip()


def _webp(png: str) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").save(buffer, "WEBP", quality=_WEBP_QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
