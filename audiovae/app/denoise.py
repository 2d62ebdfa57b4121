"""Speech out of noise, to hear and to see; and the same noise as loud as one likes."""

from __future__ import annotations

import math
import shlex
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import soundfile

from audiovae.app.sounds import (
    Sound,
    level_db,
    load_prior,
    one_line,
    read_sound,
    scale_line,
    sound_input,
    sound_output,
    spectrograms,
    told_by,
    write_sound,
)
from audiovae.audio import Wave, resample
from audiovae.errors import AudiovaeError
from audiovae.metrics import NotScored, si_sdr
from audiovae.prior import AudioVAE
from audiovae.separation import METHODS, NoisyFile, enhance, enhance_files, enhancer
from audiovae.settings import MethodName

NoiseKind = Literal["none", "white", "pink", "a file"]

EXAMPLES = Path(__file__).with_name("examples")
OF_THE_METHOD = "the method's own"  # the choice of a prior that is none
_AT_ONCE_SECONDS = 60.0  # of sound: longer ones in blocks, in constant memory


def made_noise(kind: Literal["white", "pink"], shape: tuple[int, int], seed: int = 0) -> Wave:
    """Noise of equal power at all frequencies, or in all octaves, `[channel, sample]`, of RMS 1."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    if kind == "pink":
        spectrum = np.fft.rfft(noise)
        noise = np.fft.irfft(spectrum / np.sqrt(np.arange(1, spectrum.shape[1] + 1)), shape[1])
    return (noise / np.sqrt(np.mean(np.square(noise)))).astype(np.float32)


def fitted(noise: Sound, sample_rate: int, n_samples: int) -> Wave:
    """A recorded noise at another rate and of another length: from the start again where it is too short,
    `[1, sample]`, the mean of its channels.
    """
    wave = resample(noise.wave.mean(0, keepdims=True), noise.sample_rate, sample_rate)
    return np.tile(wave, (1, -(-n_samples // wave.shape[1])))[:, :n_samples]


def with_noise(wave: Wave, noise: Wave, snr_db: float) -> Wave:
    """A wave with a noise beside it, as loud as the SNR says: 10 log10(|wave|^2 / |noise|^2).

    Args:
        wave: `[channel, sample]`.
        noise: the same, or one channel for all.

    Raises:
        AudiovaeError: one of them is digital silence.
    """
    noise = np.broadcast_to(noise, wave.shape)
    for name, one in (("sound", wave), ("noise", noise)):
        if not one.any():
            raise AudiovaeError(f"the {name} is digital silence, so there is no SNR; take another one")
    ratio_db = level_db(wave) - level_db(noise)
    return wave + np.float32(10 ** ((ratio_db - snr_db) / 20)) * noise


def speech_of(
    wave: Wave,
    sample_rate: int,
    method: MethodName = "peem",
    prior: AudioVAE | None = None,
    progress: Callable[[float], None] = lambda done: None,
) -> Wave:
    """The speech of a noisy wave `[channel, sample]`; what is left is the residual.

    Up to a minute it is `audiovae.enhance`; longer ones are taken in blocks, as of files.

    Args:
        prior: of clean speech; default: the shipped one of the method.
        progress: is told the share that is done.

    Raises:
        AudiovaeError: a prior that cannot be used so.
    """
    prior = load_prior(METHODS[method].prior) if prior is None else prior
    seconds = wave.shape[1] / sample_rate
    if seconds <= _AT_ONCE_SECONDS:
        return enhance(wave, sample_rate, method, progress=progress, prior=prior)
    done = 0.0

    def add(more: float) -> None:
        nonlocal done
        done += more
        progress(done / seconds)

    with tempfile.TemporaryDirectory() as folder:
        noisy, speech = Path(folder, "noisy.wav"), Path(folder, "speech.wav")
        soundfile.write(noisy, wave.T, sample_rate, subtype="FLOAT")
        (made,) = enhance_files(enhancer(prior, method), [NoisyFile(noisy, speech)], add)
        if isinstance(made, AudiovaeError):
            raise made
        return np.ascontiguousarray(soundfile.read(speech, dtype="float32", always_2d=True)[0].T)


def command_line(name: str, method: MethodName, model: str | None) -> str:
    """What does the same to a file in a terminal.

    Args:
        name: of the file.
        model: the prior, where it is not that of the method.
    """
    stem = Path(name).stem
    source, target = (text if text[:1] != "-" else f"./{text}" for text in (name, f"{stem}-speech.wav"))
    words = ["audiovae", "enhance", source, "-o", target, "--residual", "residual"]
    words += [] if method == "peem" else ["--method", method]
    words += [] if model is None else ["--model", model]
    return shlex.join(words)


def findings(noisy: Wave, speech: Wave, clean: Wave | None) -> str:
    """A sentence on what became of a sound.

    Args:
        clean: what noise was added to.
    """
    if not noisy.any():
        return "Digital silence."
    taken = level_db(noisy) - level_db(speech)
    told = "No speech was found." if math.isinf(taken) else f"Mean power taken away: {taken:.1f} dB."
    if clean is None:
        return told
    try:
        before, after = (np.mean([si_sdr(c, e) for c, e in zip(clean, each, strict=True)]) for each in (noisy, speech))
    except NotScored:
        return told
    return f"{told} SI-SDR re what was loaded: {before:.1f} dB with the noise, {after:.1f} dB after."


def add_tab(folder: Path, models: list[str]) -> None:
    """Build the tab.

    Args:
        folder: of the sounds that are made.
        models: priors to choose from.
    """
    import gradio as gr

    def denoise(
        path: str | None,
        kind: NoiseKind,
        noise_path: str | None,
        snr_db: float,
        method: MethodName,
        model: str,
        progress: Any = gr.Progress(),
    ) -> list[Any]:
        with one_line():
            sound = read_sound(path)
            chosen = None if model == OF_THE_METHOD else model
            noisy, shape = sound.wave, sound.wave.shape
            if kind == "a file":
                if noise_path is None:
                    raise AudiovaeError("no noise yet: drop a file of it, or choose another noise")
                noisy = with_noise(noisy, fitted(read_sound(noise_path), sound.sample_rate, shape[1]), snr_db)
            elif kind != "none":
                noisy = with_noise(noisy, made_noise(kind, shape), snr_db)
            prior = None if chosen is None else load_prior(chosen)
            speech = speech_of(noisy, sound.sample_rate, method, prior, told_by(progress, "denoising"))
            parts = {"noisy": noisy, "speech": speech, "residual": noisy - speech}
            stem = Path(sound.name).stem
            heard = [write_sound(folder, f"{stem}-{part}", wave, sound.sample_rate) for part, wave in parts.items()]
            seen = spectrograms(parts, sound.sample_rate).values()
            told = findings(noisy, speech, None if kind == "none" else sound.wave)
            name = sound.name if kind == "none" else f"{stem}-noisy.wav"
            return [*heard, *seen, told, command_line(name, method, chosen), gr.Column(visible=True)]

    with gr.Row():
        with gr.Column(min_width=300):
            sound = sound_input("Speech in noise", "denoise-sound")
            with gr.Row(elem_classes="buttons"):
                for path in sorted(EXAMPLES.glob("*.ogg")):
                    example = gr.Button(path.stem.replace("-", " "), size="sm", min_width=140)
                    example.click(partial(str, path), outputs=sound, show_progress="hidden")
        with gr.Column(min_width=300):
            with gr.Row():
                method = gr.Dropdown(
                    list(METHODS), value="peem", label="Method", info="fast is the fastest", min_width=200
                )
                model = gr.Dropdown(
                    [OF_THE_METHOD, *models], value=OF_THE_METHOD, label="Prior", info="of clean speech", min_width=200
                )
            with gr.Row():
                kind = gr.Radio(list(get_args(NoiseKind)), value="none", label="Add a noise")
                snr_db = gr.Slider(
                    -10,
                    30,
                    5,
                    step=1,
                    label="SNR (dB)",
                    info="of what was loaded over that noise",
                    elem_id="denoise-snr",
                )
            noise = sound_input("Noise", "denoise-noise", visible=False)
            kind.change(lambda chosen: gr.Audio(visible=chosen == "a file"), kind, noise, show_progress="hidden")
            start = gr.Button("Denoise", variant="primary", elem_id="denoise-start")
    told = gr.Markdown(elem_id="denoise-told")
    with gr.Column(visible=False) as results:
        gr.HTML(scale_line())
        with gr.Row():
            heard, seen = [], []
            for part in ("noisy", "speech", "residual"):
                with gr.Column(min_width=280):
                    heard.append(sound_output(f"denoise-{part}", part))
                    seen.append(gr.HTML(elem_classes="picture"))
        command = gr.Code(
            elem_id="denoise-command",
            label="The command line that does this",
            language="shell",
            interactive=False,
            lines=1,
            wrap_lines=True,
        )
    start.click(
        denoise,
        [sound, kind, noise, snr_db, method, model],
        [*heard, *seen, told, command, results],
        concurrency_id="work",
        show_progress_on=told,
    )
