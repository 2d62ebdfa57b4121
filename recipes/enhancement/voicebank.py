"""The test set of VoiceBank-DEMAND at 16 kHz, the rate of its published numbers: 824 pairs of the speakers p232 and
p257.

    python recipes/enhancement/voicebank.py VOICEBANK OUT

VOICEBANK is the folder of clean_testset_wav and noisy_testset_wav at 48 kHz; writes OUT/clean_testset_wav_16k and
OUT/noisy_testset_wav_16k, in floating point, so that nothing is clipped or rounded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import soundfile

from audiovae import audio

RATE, N_PAIRS, SPEAKERS = 16000, 824, {"p232", "p257"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("voicebank", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    names = pairs(options.voicebank)
    speakers = {name.split("_")[0] for name in names}
    if len(names) != N_PAIRS or speakers != SPEAKERS:
        print(
            f"these are {len(names)} pairs of {', '.join(sorted(speakers))}: not the published test set, {N_PAIRS} "
            "pairs of p232 and p257"
        )
    for side in ("clean", "noisy"):
        target = options.out / f"{side}_testset_wav_16k"
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            wave, _ = audio.read(options.voicebank / f"{side}_testset_wav" / name, RATE)
            soundfile.write(target / name, wave.T, RATE, "FLOAT")


def pairs(voicebank: Path) -> list[str]:
    """File names, the same on both sides."""
    clean, noisy = (
        {path.name for path in (voicebank / f"{side}_testset_wav").glob("*.wav")} for side in ("clean", "noisy")
    )
    if not clean or clean != noisy:
        raise SystemExit(
            f"{voicebank}: {len(clean)} clean and {len(noisy)} noisy test files, {len(clean ^ noisy)} without a partner"
        )
    return sorted(clean)


if __name__ == "__main__":
    main()
