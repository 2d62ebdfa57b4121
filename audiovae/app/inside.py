"""What a prior hears in a sound: power, the decoder's PSD, the bound of every frame, and latents that can be moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from audiovae.app.sounds import (
    Sound,
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
from audiovae.objectives import kl_by_dimension, sounding
from audiovae.prior import AudioVAE, LatentChoice
from audiovae.report import plots
from audiovae.stft import power
from audiovae.waves import at_rate

N_MOVED = 8  # latents with a slider
FARTHEST = 3.0  # that a slider moves one of them, in the unit of a standard normal prior
_LONGEST_SECONDS = 60.0
_LOOK = """
element.addEventListener("click", event => {
  const image = event.target.closest("svg")?.querySelector("image")
  if (!image) return
  const box = image.getBoundingClientRect()
  trigger("click", {share: Math.min(1, Math.max(0, (event.clientX - box.left) / box.width))})
})
"""


@dataclass(frozen=True)
class Inside:
    """A sound as a prior sees it, at unit level and the prior's rate.

    Attributes:
        spectrogram: of the mean of its channels.
        psd: of the decoder.
        latents: that it is decoded from.
        bound: of every frame, in nats; None where the model's likelihood is no density.
        ranked: the dimensions with most KL, or those that move most where it does not split.
        kl: of these, in nats per frame; None as above.
        level: that the sound was divided by.
        rest: the rumble that the prior does not hear, at the sound's level.
        sound: what it was.
    """

    spectrogram: Complex[Tensor, "frame freq"]
    psd: Float[Tensor, "frame freq"]
    latents: Float[Tensor, "frame latent"]
    bound: Float[Tensor, " frame"] | None
    ranked: list[int]
    kl: list[float] | None
    level: float
    rest: Float[Tensor, " sample"]
    sound: Sound

    @property
    def power(self) -> Float[Tensor, "frame freq"]:
        return power(self.spectrogram)


@torch.no_grad()
def look_inside(prior: AudioVAE, sound: Sound, choice: LatentChoice = "mean") -> Inside:
    """Encode a sound, decode it, and score it.

    Args:
        choice: decode the posterior's centre, or a sample, which is the same each time.

    Raises:
        AudiovaeError: a prior whose decoder feeds on the sound itself, or that has no PSD.
    """
    if prior.vae.needs_past:
        raise AudiovaeError(f"{type(prior.vae).__name__} predicts each frame from those before; choose another prior")
    wave = at_rate(torch.from_numpy(sound.wave.mean(0)), sound.sample_rate, prior.sample_rate)
    spectrogram, level = prior.analyse(wave)
    observed = prior.vae.observed(spectrogram)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inference = prior.vae.infer(observed, mean=choice == "mean")
        bound = prior.log_likelihood(wave) if prior.vae.is_density else None
    latents = inference.latents
    kl = kl_by_dimension(inference, sounding(power(spectrogram))) if prior.vae.has_prior else None
    order = torch.argsort(latents.std(0, correction=0) if kl is None else kl, descending=True)[:N_MOVED]
    scale = float(level) or 1.0
    return Inside(
        spectrogram, prior.psd(latents), latents, bound, order.tolist(), None if kl is None else kl[order].tolist(),
        scale, wave - scale * prior.stft.inverse(spectrogram, len(wave)), sound,
    )  # fmt: skip


@torch.no_grad()
def resynthesize(
    prior: AudioVAE, inside: Inside, moved: Mapping[int, float]
) -> tuple[Wave, Float[Tensor, "frame freq"]]:
    """The sound again, its phase being that of the original, and its PSD at unit level.

    Args:
        moved: dimensions, and what is added to them in every frame.

    Returns:
        a wave `[1, sample]` of the sound's rate, length and level, up to the prior's highest frequency.

    Raises:
        LatentError: latents that the decoder cannot take, such as those on a sphere that have left it.
    """
    offsets = torch.zeros(inside.latents.shape[-1])
    for dimension, offset in moved.items():
        offsets[dimension] = offset
    psd = prior.psd(inside.latents + offsets)
    again = prior.stft.inverse(psd.sqrt() * torch.sgn(inside.spectrogram), len(inside.rest))
    wave = at_rate(inside.level * again + inside.rest, prior.sample_rate, inside.sound.sample_rate)
    return wave[: inside.sound.wave.shape[1]].unsqueeze(0).numpy(), psd


def frame_at(inside: Inside, share: float) -> int:
    """The frame at a share of the time that a picture spans."""
    return round(share * (len(inside.latents) - 1))


def frame_picture(prior: AudioVAE, inside: Inside, frame: int) -> str:
    return plots.psd_over_power(inside.power[frame], inside.psd[frame], prior.sample_rate)


def frame_told(prior: AudioVAE, inside: Inside, frame: int) -> str:
    seconds = frame * prior.stft.hop_length / prior.sample_rate
    bound = "" if inside.bound is None else f", bound {float(inside.bound[frame]):.1f} nats"
    return f"Frame {frame} of {len(inside.latents)}, at {seconds:.2f} s{bound}"


def told(prior: AudioVAE, inside: Inside) -> str:
    """A sentence on the whole."""
    bound = "no bound in nats" if inside.bound is None else f"bound {float(inside.bound.mean()):.1f} nats per frame"
    kl = (
        "" if inside.kl is None else f"; {sum(inside.kl):.1f} nats per frame of KL in these {len(inside.kl)} dimensions"
    )
    channels = "" if len(inside.sound.wave) == 1 else f" The mean of its {len(inside.sound.wave)} channels."
    return f"{len(inside.latents)} frames, {inside.latents.shape[1]} latents, {bound}{kl}.{channels}"


def slider_label(inside: Inside, rank: int) -> str:
    nats = "" if inside.kl is None else f" ({inside.kl[rank]:.2f} nats)"
    return f"latent {inside.ranked[rank]}{nats}"


def drawn(prior: AudioVAE, inside: Inside) -> list[str]:
    """Power and PSD on one scale, and the bound over time, if there is one."""
    frame_seconds = prior.stft.hop_length / prior.sample_rate
    both = pictures({"power": inside.power, "PSD": inside.psd}, frame_seconds, prior.sample_rate)
    if inside.bound is None:
        return [*both.values(), ""]
    limits = (float(inside.bound.min()), float(inside.bound.max()))
    return [*both.values(), plots.over_time(inside.bound, frame_seconds, "nats per frame", limits)]


def again_drawn(prior: AudioVAE, psd: Float[Tensor, "frame freq"]) -> str:
    return pictures({"PSD": psd}, prior.stft.hop_length / prior.sample_rate, prior.sample_rate)["PSD"]


def add_tab(folder: Path, models: list[str]) -> None:
    """Build the tab: see `audiovae.app.denoise.add_tab`."""
    import gradio as gr

    Looked = tuple[str, Inside]  # by which prior, and what

    def look(path: str | None, model: str, choice: LatentChoice) -> list[Any]:
        with one_line():
            prior = load_prior(model)
            inside = look_inside(prior, read_sound(path, _LONGEST_SECONDS), choice)
            frame = int(inside.power.sum(1).argmax())
            n = len(inside.ranked)
            sliders = [gr.Slider(value=0, label=slider_label(inside, rank), visible=True) for rank in range(n)]
            sliders += [gr.Slider(visible=False)] * (N_MOVED - n)
            return [
                (model, inside), told(prior, inside), *drawn(prior, inside), frame_told(prior, inside, frame),
                frame_picture(prior, inside, frame), gr.Slider(value=frame, maximum=len(inside.latents) - 1),
                gr.Column(visible=True), *sliders, *moved((model, inside)),
            ]  # fmt: skip

    def moved(looked: Looked, *offsets: float) -> list[str]:
        prior, inside = load_prior(looked[0]), looked[1]
        wave, psd = resynthesize(prior, inside, dict(zip(inside.ranked, offsets, strict=False)))
        name = f"{Path(inside.sound.name).stem}-resynthesis"
        return [write_sound(folder, name, wave, inside.sound.sample_rate), again_drawn(prior, psd)]

    def move(looked: Looked | None, *offsets: float) -> list[str]:
        with one_line():
            return moved(still_there(looked), *offsets)

    def pick(looked: Looked | None, frame: float) -> list[str]:
        with one_line():
            name, inside = still_there(looked)
            prior, at = load_prior(name), min(int(frame), len(inside.latents) - 1)
            return [frame_told(prior, inside, at), frame_picture(prior, inside, at)]

    def click(looked: Looked | None, event) -> int:  # type: ignore[no-untyped-def]  # see the annotation below
        with one_line():
            return frame_at(still_there(looked)[1], float(event.share))

    click.__annotations__ = {"event": gr.EventData}  # gradio evaluates no text
    state = gr.State(None, time_to_live=3600)
    with gr.Row():
        sound = sound_input("Sound", "inside-sound", min_width=300)
        with gr.Column(min_width=300):
            model = gr.Dropdown(models, value=models[0], label="Prior", elem_id="inside-prior")
            choice = gr.Radio(["mean", "sample"], value="mean", label="Latents", info="of the posterior, to decode")
            start = gr.Button("Look inside", variant="primary", elem_id="inside-start")
    summary = gr.Markdown(elem_id="inside-told")
    with gr.Column(visible=False) as results:
        gr.HTML(scale_line())
        with gr.Row():
            seen = []
            for part, text in (
                ("power", "Power; a click chooses a frame"),
                ("psd", "The decoder's PSD; a click, too"),
                ("bound", "Bound of each frame"),
            ):
                with gr.Column(min_width=280):
                    gr.Markdown(f"**{text}**")
                    clicked = part != "bound"
                    seen.append(
                        gr.HTML(
                            js_on_load=_LOOK if clicked else None,
                            elem_id=f"inside-{part}",
                            elem_classes=["picture", "click"] if clicked else ["picture"],
                        )
                    )
        with gr.Row():
            with gr.Column(min_width=280):
                frame = gr.Slider(0, 1, 0, step=1, label="Frame", elem_id="inside-frame")
                frame_text = gr.Markdown(elem_id="inside-frame-told")
                frame_seen = gr.HTML(elem_classes="picture", elem_id="inside-frame-picture")
            with gr.Column(min_width=280):
                again = sound_output("inside-resynthesis", "resynthesis")
                again_seen = gr.HTML(elem_classes="picture")
        gr.Markdown(f"**Move a latent** in every frame, by up to {FARTHEST:g}, and hear and see the resynthesis above")
        with gr.Row():
            sliders = [
                gr.Slider(-FARTHEST, FARTHEST, 0, step=0.1, label="latent", min_width=240, elem_id=f"inside-latent-{n}")
                for n in range(N_MOVED)
            ]
    start.click(
        look,
        [sound, model, choice],
        [state, summary, *seen, frame_text, frame_seen, frame, results, *sliders, again, again_seen],
        concurrency_id="work",
        show_progress_on=summary,
    )
    for picture in seen[:2]:
        picture.click(click, state, frame, show_progress="hidden")
    frame.change(pick, [state, frame], [frame_text, frame_seen], show_progress="hidden", trigger_mode="always_last")
    gr.on(
        [slider.input for slider in sliders],
        move,
        [state, *sliders],
        [again, again_seen],
        concurrency_id="work",
        trigger_mode="always_last",
        show_progress="minimal",
    )
