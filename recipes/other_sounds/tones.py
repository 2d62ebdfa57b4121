"""Held notes of instruments out of a sound font, and what a prior makes of them.

    python recipes/other_sounds/tones.py notes FluidR3_GM.sf2 -o notes
    python recipes/other_sounds/tones.py score MODEL... --notes notes/INSTRUMENT...
    python recipes/other_sounds/tones.py lasting SOUND...

`notes` writes one WAV file a recording, `notes/cello/E4.wav`: to the end of its loop, which is repeated, as a sampler
does, until the note is two seconds long. `score` resynthesises notes with their original phase and prints SI-SDR by
instrument, without the metrics of speech that `audiovae evaluate` adds. `lasting` prints how alike spectra are that
stand apart in time.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from audiovae import AudioVAE, active_level, resample, si_sdr
from audiovae.evaluation import bound
from audiovae.metrics import normalise

SECONDS = 2.0
FADE_SECONDS = 0.05
LATENTS = ("mean", "sample")
GAPS_SECONDS = (0.1, 0.2, 0.4, 0.8)
INSTRUMENTS = {  # by what the names of their recordings begin with
    "accordion": "Accordian ",
    "alto-sax": "Alto ",
    "bagpipe": "Bagpipe ",
    "baritone-sax": "Baritone ",
    "bassoon": "E's Bassoon ",
    "brass-section": "Brass Section ",
    "cello": "Cello ",
    "church-organ": "Church Organ ",
    "english-horn": "English Horn ",
    "flute": "Flute ",
    "french-horns": "French Horns ",
    "oboe": "Oboe ",
    "pan-flute": "pan flute ",
    "piccolo": "Piccolo ",
    "recorder": "Recorder ",
    "soprano-sax": "Soprano ",
    "strings": "Strings ",
    "tenor-sax": "Tenor ",
    "trumpet": "tp_",
    "viola": "Viola ",
    "violin": "Violin ",
}
MONO, LEFT = 1, 4  # kinds of recordings; the right channel (2) is left out
RECORDING = np.dtype(
    [
        ("name", "S20"),
        *[(key, "<u4") for key in ("start", "end", "loop_start", "loop_end", "rate")],
        ("pitch", "u1"),
        ("correction", "i1"),
        ("link", "<u2"),
        ("kind", "<u2"),
    ]
)


def chunks(font: NDArray[np.uint8], start: int, end: int) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Names and bytes of RIFF chunks; those within a list come instead of the list."""
    while start + 8 <= end:
        name, size = (
            font[start : start + 4].tobytes().decode("latin-1"),
            int(font[start + 4 : start + 8].view("<u4")[0]),
        )
        start += 8
        if name in ("RIFF", "LIST"):
            yield from chunks(font, start + 4, start + size)
        else:
            yield name, font[start : start + size]
        start += size + size % 2


def notes(font: Path, output: Path) -> int:
    """Writes the notes of INSTRUMENTS and returns how many.

    Raises:
        ValueError: no sound font.

    Reference:
        E-mu Systems, "SoundFont Technical Specification", version 2.04, 2006: "smpl" holds all recordings in 16 bits,
        "shdr" where each begins, loops and ends.
    """
    content = np.memmap(font, dtype=np.uint8, mode="r")
    parts = dict(chunks(content, 0, len(content)))
    if not {"smpl", "shdr"} <= parts.keys():
        raise ValueError(f"{font} is no sound font with 16-bit recordings: give an .sf2 file")
    sound, n_written = parts["smpl"].view("<i2"), 0
    for recording in parts["shdr"].view(RECORDING):
        name = recording["name"].decode("latin-1")
        for instrument, beginning in INSTRUMENTS.items():
            if name.startswith(beginning) and recording["kind"] in (MONO, LEFT):
                note = re.sub(r"\W", "", name.removeprefix(beginning).removesuffix("(L)").replace("#", "s"))
                (output / instrument).mkdir(parents=True, exist_ok=True)
                soundfile.write(output / instrument / f"{note}.wav", held(sound, recording), int(recording["rate"]))
                n_written += 1
    return n_written


def held(sound: NDArray[np.int16], recording: np.void) -> NDArray[np.float64]:
    """`[sample]`, with full scale 1: a recording to the end of its loop, which goes on for SECONDS at least."""
    start, loop_start, loop_end, rate = (int(recording[key]) for key in ("start", "loop_start", "loop_end", "rate"))
    length = max(loop_end - start, round(SECONDS * rate))
    n_loops = -(-(length - (loop_start - start)) // (loop_end - loop_start))
    wave = np.concatenate([sound[start:loop_start], *[sound[loop_start:loop_end]] * n_loops])[:length] / 2**15
    n_fade = round(FADE_SECONDS * rate)
    wave[-n_fade:] *= np.linspace(1, 0, n_fade)
    return wave


def read(path: Path, rate: int) -> NDArray[np.float32]:
    """`[sample]`, channels averaged."""
    wave, own_rate = soundfile.read(path, dtype="float32", always_2d=True)
    return resample(np.ascontiguousarray(wave.mean(axis=1)), own_rate, rate)


def score(prior: AudioVAE, folder: Path) -> tuple[float, float, float]:
    """Of all notes in a folder: SI-SDR in dB from the posterior mean and from a sampled z; KL in nats per second."""
    found = []
    for path in sorted(folder.glob("*.wav")):
        wave = normalise(read(path, prior.sample_rate)[None], prior.sample_rate)
        level = active_level(wave, prior.sample_rate)
        sdrs = [si_sdr(wave[0], prior.resynthesize(wave, latents=latents, level=level)[0]) for latents in LATENTS]
        found.append((*sdrs, bound(prior, wave)["kl"] * prior.sample_rate / prior.stft.hop_length))
    mean, sampled, kl = np.mean(found, axis=0).tolist()
    return mean, sampled, kl


def print_scores(models: list[str], folders: list[Path]) -> None:
    print(f"| prior | window (ms) | weights | KL (nats/s) | {' | '.join(folder.name for folder in folders)} | all |")
    print("| --- |" + " ---: |" * (4 + len(folders)))
    for name in models:
        prior = AudioVAE.from_pretrained(name).eval()
        torch.manual_seed(0)
        values = np.array([score(prior, folder) for folder in folders])
        cells = [f"{mean:.1f} / {sampled:.1f}" for mean, sampled, _ in (*values, values.mean(axis=0))]
        facts = [
            f"{1000 * prior.stft.n_fft / prior.sample_rate:.0f}",
            f"{sum(p.numel() for p in prior.vae.parameters()):,}",
        ]
        print(f"| {' | '.join([Path(name).name, *facts, f'{values[:, 2].mean():.0f}', *cells])} |", flush=True)


def lasting(path: Path, rate: int = 16000, n_fft: int = 2048, hop_length: int = 160) -> list[float]:
    """Mean correlation of amplitude spectra that stand GAPS_SECONDS apart, over frames within 30 dB of the loudest.

    A spectrum is averaged over 50 ms first, for chance amplitudes, which differ from frame to frame, to count less.
    """
    wave = read(path, rate)
    frames = np.lib.stride_tricks.sliding_window_view(wave, n_fft)[::hop_length] * np.hanning(n_fft)
    spectra = np.abs(np.fft.rfft(frames))
    n_mean = round(0.05 * rate / hop_length)
    spectra = np.lib.stride_tricks.sliding_window_view(spectra, n_mean, axis=0).mean(axis=-1)
    power = np.square(spectra).sum(axis=1)
    centred = spectra - spectra.mean(axis=1, keepdims=True)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True) + 1e-12
    loud, found = power > 1e-3 * power.max(), []
    for gap in GAPS_SECONDS:
        n_frames = round(gap * rate / hop_length)
        kept = loud[n_frames:] & loud[:-n_frames]
        found.append(float((centred[n_frames:] * centred[:-n_frames]).sum(axis=1)[kept].mean()))
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for_notes = verbs.add_parser("notes")
    for_notes.add_argument("font", type=Path)
    for_notes.add_argument("-o", "--output", type=Path, required=True)
    for_score = verbs.add_parser("score")
    for_score.add_argument("models", nargs="+", metavar="MODEL")
    for_score.add_argument("--notes", type=Path, nargs="+", required=True, metavar="FOLDER")
    for_lasting = verbs.add_parser("lasting")
    for_lasting.add_argument("sounds", type=Path, nargs="+", metavar="SOUND")
    options = parser.parse_args(arguments)
    if options.verb == "notes":
        print(f"{notes(options.font, options.output)} notes in {options.output}")
        return
    if options.verb == "score":
        print_scores(options.models, options.notes)
        return
    print("seconds apart " + "".join(f"{gap:7.1f}" for gap in GAPS_SECONDS))
    print(
        "correlation   " + "".join(f"{value:7.2f}" for value in np.mean([lasting(p) for p in options.sounds], axis=0))
    )


if __name__ == "__main__":
    main()
