"""The main job in three minutes: speak a corpus, train a prior on it, resynthesise voices that it never heard, write a
page, and say what to do next.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from rich.progress import Progress as Bar

from audiovae import (
    METRICS,
    STFT,
    AudioVAE,
    Evaluation,
    FrameVAE,
    FrameVAESettings,
    PackedCorpus,
    PrepareSettings,
    ReportedFile,
    TrainingSettings,
    evaluate_file,
    fit,
    prepare,
    resynthesize_file,
    shipped_names,
    speak_corpus,
    summarise,
    write_report,
)
from audiovae.cli.progress import print_table

TRAINING_SECONDS = 50.0
NOISY_SNR_DB = 5.0
MARK = "held_out.txt"  # by which a folder is known to be of an earlier demo
HELD_OUT = ("en-us-m3", "en-us-f4", "en-gb-scotland-m6", "en-gb-x-rp-f2")
SIZES = FrameVAESettings(latent_dim=32, hidden=(256, 256), residual=True, activation="silu")


def main(folder: Path) -> None:
    speech, packed, model = folder / "speech", folder / "packed", folder / "model"
    shutil.rmtree(folder, ignore_errors=True)
    torch.set_num_threads(1)  # small products: a second thread costs more than it brings where another job runs
    voices = speak_corpus(speech)
    (folder / MARK).write_text("\n".join(HELD_OUT))
    prepared = prepare(speech, packed, PrepareSettings(validation_speakers=str(folder / MARK)), overwrite=True)
    print(
        f"{len(prepared.utterances)} sentences, {prepared.seconds_new / 60:.1f} minutes, of {len(voices)} voices, "
        f"{len(HELD_OUT)} held out"
    )

    corpus = PackedCorpus(packed)
    torch.manual_seed(0)
    prior = AudioVAE(STFT(), FrameVAE(513, SIZES), corpus.header.sample_rate)
    settings = TrainingSettings(steps=steps_that_fit(corpus, folder), validate_every=250)
    with Bar() as bar:
        task = bar.add_task("training", total=settings.steps)
        fit(prior, corpus, corpus, model, settings, progress=lambda now: bar.update(task, completed=now.step))

    evaluations = []
    priors = {"trained just now": prior} | {name: AudioVAE.from_pretrained(name) for name in shipped_names()}
    for name, one in priors.items():
        torch.manual_seed(0)
        files = [speech / voice / "00.wav" for voice in HELD_OUT]
        for voice, file in zip(HELD_OUT, files, strict=True):
            resynthesize_file(one, file, folder / "resynthesis" / name.replace(" ", "-") / f"{voice}.wav")
        scores = [evaluate_file(one, file) for file in files]
        evaluations.append(
            Evaluation(name, one, [ReportedFile(f, s.values, s.reasons) for f, s in zip(files, scores, strict=True)])
        )
    summaries = {e.name: summarise([file.values for file in e.files]) for e in evaluations}
    metrics = [metric for metric in METRICS if any(metric in summary for summary in summaries.values())]
    rows = [
        [name, *(str(summary.get(metric, "not scored")) for metric in metrics)] for name, summary in summaries.items()
    ]
    print_table(
        ["prior", *(METRICS[metric].heading for metric in metrics)],
        rows,
        f"{len(HELD_OUT)} voices that it never heard: original phase, posterior mean, 95 % intervals",
    )
    write_report(
        folder / "report.html", evaluations, "audiovae demo", "Four synthetic voices that the first prior never heard."
    )
    write_noisy(speech / HELD_OUT[1] / "00.wav", folder / "noisy.wav")
    print(f"\nNext, open {folder / 'report.html'}")
    for why, commands in next_steps(folder).items():
        print("\n".join([f"\n{why}:", *(f"  {command}" for command in commands)]))
    print(f"\nAnd a page, for your own voice (Ctrl-C ends it):\n  {page_command()}")


def steps_that_fit(corpus: PackedCorpus, folder: Path) -> int:
    """How many training steps this machine does in the time."""
    scratch = folder / "timing"
    times = []
    for steps in (1, 5, 45):  # the first one imports what it needs
        prior = AudioVAE(STFT(), FrameVAE(513, SIZES), corpus.header.sample_rate)
        begin = time.perf_counter()
        fit(prior, corpus, corpus, scratch, TrainingSettings(steps=steps, validate_every=1000))
        times.append(time.perf_counter() - begin)
        shutil.rmtree(scratch)
    return max(100, min(3000, int(TRAINING_SECONDS / ((times[2] - times[1]) / 40))))


def write_noisy(clean: Path, target: Path) -> None:
    """Speech in pink noise."""
    wave, rate = soundfile.read(clean)
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(len(wave)))
    noise = np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), len(wave))
    noise *= 10 ** (-NOISY_SNR_DB / 20) * np.linalg.norm(wave) / np.linalg.norm(noise)
    noisy = wave + noise
    soundfile.write(target, noisy / max(1.0, np.abs(noisy).max()), rate)


def next_steps(folder: Path) -> dict[str, list[str]]:
    """Commands to go on with, each as it can be typed here, by what they are good for."""
    program = this_program()

    def at(name: str) -> str:
        return shlex.quote(str(folder / name))

    return {
        f"Take speech out of noise, and see and hear what happened in {folder / 'enhanced.html'}": [
            f"{program} enhance {at('noisy.wav')} -o {at('enhanced.wav')} --report {at('enhanced.html')}"
        ],
        "Let the prior speak by itself": [f"{program} sample -o {at('sample.wav')} --model {at('model')}"],
        f"A prior of your own recordings, in place of {folder / 'speech'}": [
            f"{program} prepare {at('speech')} {at('my-packed')}",
            f"{program} train {at('my-packed')} -o {at('my-model')} --training.steps 1000",
            f"{program} evaluate {at(f'speech/{HELD_OUT[0]}')} --model {at('my-model')} --report {at('mine.html')}",
        ],
        "All that there is": [f"{program} help"],
    }


def page_command() -> str:
    """The page's, behind how its library is installed where it is not."""
    missing = importlib.util.find_spec("gradio") is None
    return ("pip install 'audiovae[app]' && " if missing else "") + f"{this_program()} app"


def this_program() -> str:
    """The command line, as it can be typed here."""
    script = Path(sys.executable).with_name("audiovae")
    script = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script
    return shlex.quote(str(script)) if script.exists() else "python -m audiovae"


def folder_of_a_demo(text: str) -> Path:
    """Where the demo goes: a folder that is new, empty, or of an earlier demo, for it is emptied first."""
    folder = Path(text)
    if folder.exists() and not (folder / MARK).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise argparse.ArgumentTypeError(f"{text} holds something else than a demo; name a new folder")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=folder_of_a_demo, default="demo", help="what is made (default: demo)")
    main(parser.parse_args().folder)
