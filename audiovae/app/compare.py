"""Two sounds as one prior sees them, and what lies between their latents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from audiovae.app.inside import Inside, look_inside
from audiovae.app.sounds import (
    load_prior,
    one_line,
    pictures,
    read_sound,
    scale_line,
    sound_input,
    sound_output,
    still_there,
    write_sound,
)
from audiovae.audio import Wave
from audiovae.errors import AudiovaeError
from audiovae.phase import griffin_lim
from audiovae.prior import AudioVAE
from audiovae.report.markup import number

_LONGEST_SECONDS = 20.0


@dataclass(frozen=True)
class Between:
    """A sound between two others, at the prior's rate.

    Attributes:
        psd: at unit level.
        wave: `[1, sample]`, its phase by Griffin-Lim.
    """

    psd: Float[Tensor, "frame freq"]
    wave: Wave


@torch.no_grad()
def between(prior: AudioVAE, first: Inside, second: Inside, share: float) -> Between:
    """Decode what lies on the straight line from the latents of one sound to those of another.

    Both are stretched to a common number of frames, which like their level goes from that of the one to the other's.

    Args:
        share: of the second, from 0 to 1.

    Raises:
        LatentError: latents that the decoder cannot take, such as those of a sphere, which the line leaves.
    """
    n_first, n_second = len(first.latents), len(second.latents)
    n_frames = round(n_first + share * (n_second - n_first))
    z = torch.lerp(stretched(first.latents, n_frames), stretched(second.latents, n_frames), share)
    psd = prior.psd(z)
    level = math.exp(math.log(first.level) + share * math.log(second.level / first.level))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wave = level * griffin_lim(prior.stft, psd.sqrt(), (n_frames - 1) * prior.stft.hop_length)
    return Between(psd, wave.unsqueeze(0).numpy())


def stretched(latents: Float[Tensor, "frame latent"], n_frames: int) -> Float[Tensor, "{n_frames} latent"]:
    """Latents at another number of frames, on straight lines between theirs; first and last stay."""
    return functional.interpolate(latents.T.unsqueeze(0), n_frames, mode="linear", align_corners=True)[0].T


def table(of: Mapping[str, Inside]) -> list[list[str]]:
    """A row of numbers for each sound, below `COLUMNS`."""
    rows = []
    for name, inside in of.items():
        bound = "none" if inside.bound is None else f"{float(inside.bound.mean()):.1f}"
        kl = "none" if inside.kl is None else number(sum(inside.kl))
        level = f"{20 * math.log10(inside.level):.1f}"
        rows.append([f"{name}: {inside.sound.name}", f"{inside.sound.seconds:.2f}", level, bound, kl])
    return rows


COLUMNS = ["sound", "seconds", "level (dB re full scale)", "bound (nats per frame)", "KL of its 8 most (nats)"]


def add_tab(folder: Path, models: list[str]) -> None:
    """Build the tab: see `audiovae.app.denoise.add_tab`."""
    import gradio as gr

    Compared = tuple[str, Inside, Inside]  # by which prior, and what

    def compare(first_path: str | None, second_path: str | None, model: str, share: float) -> list[Any]:
        with one_line():
            prior, both = load_prior(model), {}
            for name, path in (("first", first_path), ("second", second_path)):
                if path is None:
                    raise AudiovaeError(f"no {name} sound yet: record one, or drop a file")
                both[name] = look_inside(prior, read_sound(path, _LONGEST_SECONDS))
            compared = (model, both["first"], both["second"])
            return [compared, table(both), gr.Column(visible=True), *shown(compared, share)]

    def shown(compared: Compared, share: float) -> list[Any]:
        prior, first, second = load_prior(compared[0]), *compared[1:]
        middle = between(prior, first, second, share)
        powers = {"first": first.psd, "between": middle.psd, "second": second.psd}
        seen = pictures(powers, prior.stft.hop_length / prior.sample_rate, prior.sample_rate)
        return [*seen.values(), write_sound(folder, "between", middle.wave, prior.sample_rate)]

    def go(compared: Compared | None, share: float) -> list[Any]:
        with one_line():
            return shown(still_there(compared), share)

    state = gr.State(None, time_to_live=3600)
    with gr.Row():
        first, second = (
            sound_input(f"{name} sound", f"compare-{name.lower()}", min_width=300) for name in ("First", "Second")
        )
    with gr.Row():
        model = gr.Dropdown(models, value=models[0], label="Prior", min_width=300)
        start = gr.Button("Compare", variant="primary", elem_id="compare-start", min_width=300)
    told = gr.Markdown("")
    with gr.Column(visible=False) as results:
        numbers = gr.Dataframe(headers=COLUMNS, interactive=False, elem_id="compare-numbers", wrap=True)
        gr.HTML(scale_line())
        share = gr.Slider(
            0, 1, 0.5, step=0.05, label="Between their latents", info="0: the first, 1: the second",
            elem_id="compare-share",
        )  # fmt: skip
        with gr.Row():
            seen = []
            for text in ("PSD of the first", "PSD between", "PSD of the second"):
                with gr.Column(min_width=280):
                    gr.Markdown(f"**{text}**")
                    seen.append(gr.HTML(elem_classes="picture"))
        heard = sound_output("compare-between", "between, phase by Griffin-Lim")
    start.click(
        compare,
        [first, second, model, share],
        [state, numbers, results, *seen, heard],
        concurrency_id="work",
        show_progress_on=told,
    )
    share.input(
        go, [state, share], [*seen, heard], concurrency_id="work", trigger_mode="always_last", show_progress="minimal"
    )
