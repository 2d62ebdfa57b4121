"""Speakers out of a room: a recording of several microphones taken apart, to hear and to see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np

from audiovae.app.denoise import EXAMPLES
from audiovae.app.sounds import (
    level_db,
    one_line,
    read_sound,
    scale_line,
    sound_input,
    sound_output,
    spectrograms,
    told_by,
    write_sound,
)
from audiovae.audio import Wave, read
from audiovae.separation import separate
from audiovae.settings import RoomMethodName

MOST_SOURCES = 4
_LONGEST_SECONDS = 60.0
_DELAYS, _REFLECTIONS, _ROOM_SECONDS = (0, 3), 400, 0.15  # samples from voice to voice, and the made-up room's own


def parts_of(
    wave: Wave,
    sample_rate: int,
    n_sources: int,
    method: RoomMethodName = "deep",
    progress: Callable[[float], None] = lambda done: None,
) -> dict[str, Wave]:
    """The speakers of a recording at its first microphone, the loudest first, and the noise; they sum to it.

    Args:
        wave: `[channel, sample]` of two microphones or more.
        progress: is told the share that is done.

    Returns:
        `[1, sample]` each, by name.

    Raises:
        AudiovaeError: a single channel, or one that the method cannot take apart.
    """
    images = separate(wave, sample_rate, n_sources, method, progress=progress)
    names = [*(f"speaker {n}" for n in range(1, n_sources + 1)), "noise"]
    return {name: image[:1] for name, image in zip(names, images, strict=True)}


def made_up_room(sample_rate: int = 16000) -> Wave:
    """Two of the shipped examples, one from the left and one from the right, at two microphones, `[2, sample]`."""
    random = np.random.default_rng(0)
    first, second = (
        read(EXAMPLES / f"speech-in-{noise}.ogg", sample_rate)[0][0].astype(float) for noise in ("rain", "babble")
    )
    n = min(len(first), len(second))
    microphones = []
    for m in range(2):
        heard = np.zeros(n)
        for voice, near in ((first, 0), (second, 1)):
            response = np.zeros(round(_ROOM_SECONDS * sample_rate))
            places = random.integers(_DELAYS[1] + 1, len(response), _REFLECTIONS)
            decay = np.exp(-6.9 * places / len(response))
            response[places] = 0.05 * decay * random.standard_normal(_REFLECTIONS)
            response[_DELAYS[m != near]] = 1.0
            heard += np.convolve(voice[:n], response)[:n]
        microphones.append(heard)
    return np.stack(microphones).astype(np.float32)


def add_tab(folder: Path, models: list[str]) -> None:
    """Build the tab: see `audiovae.app.denoise.add_tab`; each method has a prior of its own, or none."""
    import gradio as gr

    def take_apart(
        path: str | None, n_sources: float, method: RoomMethodName, progress: Any = gr.Progress()
    ) -> list[Any]:
        with one_line():
            sound = read_sound(path, _LONGEST_SECONDS)
            parts = parts_of(
                sound.wave, sound.sample_rate, int(n_sources), method, told_by(progress, "taking it apart")
            )
            shown = {"microphone 1": sound.wave[:1], **parts}
            stem = Path(sound.name).stem
            heard = [
                gr.Audio(write_sound(folder, f"{stem}-{name.replace(' ', '-')}", wave, sound.sample_rate), label=name)
                for name, wave in shown.items()
            ]
            seen = [gr.HTML(picture) for picture in spectrograms(shown, sound.sample_rate).values()]
            told = ", ".join(f"{name} {level_db(wave):.1f} dB" for name, wave in shown.items())
            columns = [gr.Column(visible=n < len(shown)) for n in range(MOST_SOURCES + 2)]
            rest = len(columns) - len(shown)
            return [
                f"Mean powers re full scale: {told}.", gr.Column(visible=True), *columns, *heard,
                *[gr.Audio(None)] * rest, *seen, *[gr.HTML("")] * rest,
            ]  # fmt: skip

    def example() -> str:
        return write_sound(folder, "two-voices", made_up_room(), 16000)

    with gr.Row():
        with gr.Column(min_width=300):
            sound = sound_input("Recording of several microphones", "separate-sound", sources=["upload"])
            made_up = gr.Button("two voices, two microphones, made up", size="sm", elem_id="separate-example")
            made_up.click(example, outputs=sound, show_progress="hidden")
        with gr.Column(min_width=300):
            n_sources = gr.Slider(
                1,
                MOST_SOURCES,
                2,
                step=1,
                label="Speakers",
                info="the noise is beside them",
                elem_id="separate-sources",
            )
            method = gr.Dropdown(
                list(get_args(RoomMethodName)),
                value="deep",
                label="Method",
                info="deep is the best; iva, ilrma, fastmnmf2 and fca need no prior",
            )
            start = gr.Button("Separate", variant="primary", elem_id="separate-start")
    told = gr.Markdown(elem_id="separate-told")
    with gr.Column(visible=False) as results:
        gr.HTML(scale_line())
        columns, heard, seen = [], [], []
        with gr.Row():
            for n in range(MOST_SOURCES + 2):
                with gr.Column(min_width=280, visible=False) as column:
                    heard.append(sound_output(f"separate-part-{n}"))
                    seen.append(gr.HTML(elem_classes="picture"))
                columns.append(column)
    start.click(
        take_apart,
        [sound, n_sources, method],
        [told, results, *columns, *heard, *seen],
        concurrency_id="work",
        show_progress_on=told,
    )
