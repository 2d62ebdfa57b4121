"""Free corpora that torchaudio.datasets can fetch; it verifies their checksums."""

from __future__ import annotations

import difflib
from pathlib import Path

from audiovae.errors import AudiovaeError, CorpusError

# name -> (class in torchaudio.datasets, does it take a part?, an example of one)
DOWNLOADS = {
    "LIBRISPEECH": ("url", "train-clean-100"),
    "LIBRITTS": ("url", "train-clean-100"),
    "VCTK_092": (None, None),
    "LJSPEECH": (None, None),
    "CMUARCTIC": ("url", "bdl"),
}


def download(name: str, folder: Path) -> None:
    """Fetch a corpus, or one part of it ("LIBRISPEECH:dev-clean"), into `folder`.

    Raises:
        AudiovaeError: not one of the free corpora, no torchaudio, or the transfer or the checksum failed.
    """
    corpus, _, part = name.partition(":")
    corpus = corpus.upper()
    if corpus not in DOWNLOADS:
        near = difflib.get_close_matches(corpus, DOWNLOADS, 1)
        raise AudiovaeError(
            f"--download {name}: not a corpus that can be fetched; "
            + (f"did you mean {near[0]}?" if near else f"known are {', '.join(DOWNLOADS)}")
        )
    option, example = DOWNLOADS[corpus]
    if part and option is None:
        raise AudiovaeError(f"--download {name}: {corpus} has no parts; give {corpus} alone")
    try:
        from torchaudio import datasets
    except (ImportError, OSError, RuntimeError) as error:
        raise AudiovaeError(
            "--download needs torchaudio in the build that matches torch; install both at 2.11.0"
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        getattr(datasets, corpus)(str(folder), download=True, **({str(option): part or example} if option else {}))
    except Exception as error:
        raise CorpusError(folder, f"{name} could not be downloaded ({type(error).__name__}: {error})") from error
