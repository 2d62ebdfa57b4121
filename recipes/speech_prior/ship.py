"""Put a trained model into the package, with a card made from its run and its scores.

    python recipes/speech_prior/ship.py MODEL SCORES.json KINDS.json SECONDS audiovae/pretrained/speech-16k

SCORES.json is what benchmarks/quality.py wrote for MODEL, KINDS.json what not_speech.py did; SECONDS is how long
training took.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from not_speech import table

from audiovae import METRICS, AudioVAE, summarise

HERE = Path(__file__).parent
CARD = """---
library_name: audiovae
license: cc-by-4.0
language: en
datasets: [openslr/librispeech_asr]
pipeline_tag: audio-to-audio
tags: [audio, speech, vae, unsupervised]
model-index:
- name: {name}
  results:
  - task: {{type: audio-to-audio, name: resynthesis from the posterior mean}}
    dataset: {{type: openslr/librispeech_asr, name: "LibriSpeech, {n_validation} utterances of unheard speakers"}}
    metrics:
{index}
---

# {name}

{what} of clean English speech at 16 kHz: {weights:,} weights, {latent_dim} latent dimensions per frame,
STFT {n_fft}/{hop_length} with a {window} window. It needs no network and no other file. Its weights are stored in half
precision (means move by less than 0.01 dB and 0.02 nats) and used in single precision.

    prior = audiovae.AudioVAE.from_pretrained("{name}")

## Data and licence

Trained on {n_train} utterances, one each of {n_train} speakers ({minutes:.1f} minutes after trimming; each also played
at 0.9 and 1.1 times its speed), out of LibriSpeech train-clean-100: V. Panayotov, G. Chen, D. Povey, S. Khudanpur,
"LibriSpeech: an ASR corpus based on public domain audio books", ICASSP 2015, licensed under CC BY 4.0
(https://creativecommons.org/licenses/by/4.0/). The utterances were trimmed, resampled to other speeds, and reduced to
these weights. The weights are under CC BY 4.0 as well; name the corpus and audiovae.

{n_tuning} other speakers chose the settings and the step that was kept. {n_validation} further speakers were scored
once, at the end: the table.

## Numbers

{n_validation} recordings of {n_validation} speakers that it never heard, trimmed at 30 dB, unit RMS; original phase;
means with 95 % intervals over files; NLL = -log p(x | z) with z ~ q(z | x), in nats per frame; NLL + KL is a bound on
-log p(x). One training run (seed {seed}).

| wave from | {heads} |
| --- |{rules}
{rows}

## What is not speech

Medians (lowest to highest) of eight seconds of each file; then the share of pairs of such a sound and clean speech in
which the sound has the higher NLL + KL, the higher KL, the worse resynthesis: 0.5 tells nothing, 0 and 1 tell all.

{kinds}

NLL + KL does not tell what is speech: it follows how full a spectrum is, so noise lies above speech, and tones lie far
away on one side or the other. The KL tells in part: noise takes less to describe, so its KL is *lower*
than that of speech, and speech in noise lies between; music and chords lie on either side. A resynthesis that is worse
than that of speech tells music, and much of the noise: the last column. Speech: LibriSpeech. Noisy: VoiceBank-DEMAND.
Noise: ESC-10. Music: of the Debian packages pathological and tuxtype-data. Tones and chords: see
recipes/speech_prior/not_speech.py.

## Training

    python recipes/speech_prior/subset.py LIBRISPEECH subset
    audiovae prepare subset packed --validation_speakers recipes/speech_prior/tuning_speakers.txt \\
        --test_speakers recipes/speech_prior/validation_speakers.txt --speeds '[0.9, 1.1]'
    OMP_NUM_THREADS=1 audiovae train packed -o {name} --config recipes/speech_prior/{name}.yaml

{steps} steps of {batch} frames, beta {beta}, seed {seed}, {seconds} s (other jobs beside it) on one thread of an AMD
EPYC (Zen 5, with bf16 instructions), torch {torch}, audiovae {audiovae}.

## Limits

* English read speech, recorded close and clean, with little noise; trained on less than an hour of it. Whispered, sung,
  shouted, noisy, reverberant or band-limited speech, other languages, children and music are outside; no number that it gives says
  so by itself, see above.
* {order}
* "Original phase" is an oracle. With Griffin-Lim, magnitudes are the same and the wave is not.
* {weight}

## Utterances

{utterances}
"""


BELOW_ONE = """beta {beta} buys sound with bits: a KL weight below 1 lets the posteriors of all speech together drift
from the prior. Bound and sound in the table are of the same weights.
"""

ABOVE_ONE = """beta {beta} keeps in the latents what is worth it: made for `audiovae enhance` and `separate`, where a prior must refuse
noise. It has neither the best bound nor the best sound of the shipped ones.
"""

# By type of model: what it is, and what that means for sound sampled from it.
KINDS = {
    "FrameVAE": (
        "A frame-wise variational autoencoder",
        "It treats frames as independent: what is sampled from it has no order in time.",
    ),
    "DynamicVAE": (
        "A variational autoencoder with context in time (encoder and decoder see neighbouring frames, the prior the "
        "latents before)",
        "What is sampled from it moves as speech does, and says nothing. It sees the future, so it is not for live "
        "streams.",
    ),
    "causal DynamicVAE": (
        "A variational autoencoder with context in time that sees no future, for live streams (encoder and decoder see "
        "the frames before alone, the prior the latents before)",
        "What is sampled from it moves as speech does, and says nothing.",
    ),
}


def kind_of(model: dict[str, object]) -> tuple[str, str]:
    """What a model of these sizes is, and what that means for sound sampled from it."""
    return KINDS[("causal " if model.get("causal") else "") + str(model["type"])]


def index_rows(values: dict[str, float]) -> str:
    """Rows of a card's model-index: titles of metrics with their values."""
    return "\n".join(
        f'    - {{type: {title.split(" (")[0].lower()}, name: "{title}", value: {value}}}'
        for title, value in values.items()
    )


def main(model: Path, scores_file: Path, kinds_file: Path, seconds: str, target: Path) -> None:
    run = json.loads((model / "training" / "run.json").read_text())
    prior = AudioVAE.from_pretrained(model)
    scores = {
        name: values
        for name, values in json.loads(scores_file.read_text()).items()
        if name.startswith(f"{model.name},")
    }
    summaries = {
        name.split(", ")[1].replace("mean z", "posterior mean").replace("sample z", "sampled z"): summarise(
            [{key: value for key, value in row.items() if key != "file"} for row in rows]
        )
        for name, rows in scores.items()
    }
    metrics = [metric for metric in METRICS if metric in next(iter(summaries.values()))]
    with open(HERE / "utterances.tsv", newline="") as file:
        utterances = list(csv.DictReader(file, delimiter="\t"))
    count = {role: sum(row["role"] == role for row in utterances) for role in ("train", "tuning", "validation")}
    beta = run["settings"]["beta"]
    kinds = table(json.loads(kinds_file.read_text())[model.name])
    card = CARD.format(
        kinds=kinds,
        weight=(BELOW_ONE if beta < 1 else ABOVE_ONE).format(beta=beta),
        name=target.name, what=kind_of(run["model"])[0], order=kind_of(run["model"])[1], weights=sum(p.numel() for p in prior.parameters()), **run["model"], n_train=count["train"],
        n_tuning=count["tuning"], n_validation=count["validation"], minutes=41.7, heads=" | ".join(METRICS[m].title for m in metrics),
        rules=" ---: |" * len(metrics), rows="\n".join(f"| {name} | {' | '.join(str(s[m]) for m in metrics)} |" for name, s in summaries.items()),
        seed=run["settings"]["seed"], steps=run["settings"]["steps"], batch=run["settings"]["batch_frames"], beta=beta,
        seconds=seconds, torch=run["versions"]["torch"].split("+")[0], audiovae=run["versions"]["audiovae"],
        index=index_rows({METRICS[m].title: round(s.mean, 3) for m, s in summaries["posterior mean"].items() if m in metrics}),
        utterances="| utterance | role | SHA-256 of its FLAC file |\n| --- | --- | --- |\n"
        + "\n".join(f"| {row['utterance']} | {row['role']} | {row['sha256_of_flac']} |" for row in utterances),
    )  # fmt: skip
    prior.half().save_pretrained(target, card)
    print(f"{target}: {(target / 'model.safetensors').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], Path(sys.argv[5]))
