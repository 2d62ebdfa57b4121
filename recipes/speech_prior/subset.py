"""Copy the 251 utterances of this recipe out of a LibriSpeech train-clean-100 folder, each checked by its SHA-256.

    python recipes/speech_prior/subset.py LIBRISPEECH OUT

LIBRISPEECH holds train-clean-100 (from openslr.org/12, or: audiovae prepare LIBRISPEECH PACKED --download
LIBRISPEECH:train-clean-100).
"""

from __future__ import annotations

import csv
import hashlib
import shutil
import sys
from pathlib import Path


def main(corpus: Path, target: Path) -> None:
    folders = [path for path in (corpus, corpus / "LibriSpeech") if (path / "train-clean-100").is_dir()]
    if not folders:
        sys.exit(f"{corpus}: has no folder train-clean-100")
    with open(Path(__file__).parent / "utterances.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for row in rows:
        speaker, chapter, _ = row["utterance"].split("-")
        name = Path("train-clean-100", speaker, chapter, row["utterance"] + ".flac")
        content = (folders[0] / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != row["sha256_of_flac"]:
            sys.exit(f"{folders[0] / name}: is not the utterance that this recipe was made with")
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folders[0] / name, target / name)
    print(f"{len(rows)} utterances in {target}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
