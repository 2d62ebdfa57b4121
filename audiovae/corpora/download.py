"""Free corpora, fetched from where their authors publish them, and verified."""

from __future__ import annotations

import difflib
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from audiovae.errors import AudiovaeError, CorpusError

RETRIES = 3
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Published:
    """A corpus as it is published, with a `{}` for the name of a part.

    Attributes:
        url: of the archive.
        sha256: of the archive, by part; a corpus in one piece has the part "".
        folder: that the archive is unpacked in.
        content: what is in `folder` then.
        default: part that is fetched if none is named.
    """

    url: str
    sha256: dict[str, str]
    folder: str
    content: str
    default: str = ""


@dataclass
class _Progress:
    """What pooch reports progress to: in mebibytes."""

    report: Callable[[int, int], None]
    total: int = 0
    _done: int = field(default=0)

    def update(self, n_bytes: int) -> None:
        self._done += n_bytes
        self.report(self._done >> 20, self.total >> 20)

    def reset(self) -> None:
        self._done = 0

    def close(self) -> None:
        pass


def download(name: str, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Fetch a corpus, or one part of it ("LIBRISPEECH:dev-clean"), into `folder`, unless it is there.

    What is there in part, after an interruption, is fetched or unpacked anew; the archive is removed in the end.

    Args:
        progress: called with the number of mebibytes fetched and their total.

    Raises:
        AudiovaeError: not one of the free corpora, or none of its parts; or the transfer failed, or what came is not
            what was published.
        CorpusError: it cannot be unpacked.
    """
    corpus, _, part = name.partition(":")
    corpus = corpus.upper()
    if corpus not in DOWNLOADS:
        raise AudiovaeError(f"--download {name}: not a corpus that can be fetched; {_near(corpus, list(DOWNLOADS))}")
    published = DOWNLOADS[corpus]
    if part and "" in published.sha256:
        raise AudiovaeError(f"--download {name}: {corpus} has no parts; give {corpus} alone")
    part = part or published.default
    if part not in published.sha256:
        raise AudiovaeError(f"--download {name}: {corpus} has no such part; {_near(part, list(published.sha256))}")
    url = published.url.format(part)
    target = folder / published.folder
    fetched = target / f".fetched-{part or corpus}"  # a folder: while it is there, the corpus is not whole
    if (target / published.content.format(part)).exists() and not fetched.exists():
        return
    try:
        fetched.mkdir(parents=True, exist_ok=True)
        archive = _fetched(url, published.sha256[part], fetched, progress)
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(target)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(target, filter="data")
        shutil.rmtree(fetched)
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:100]
        raise CorpusError(
            target, f"{name} cannot be unpacked here ({reason}); check the folder and the free space, and run it again"
        ) from error


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def _fetched(url: str, sha256: str, folder: Path, progress: Callable[[int, int], None]) -> Path:
    """The archive, which is not fetched again where it is whole."""
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")
    name = url.rpartition("/")[2]
    for path in folder.iterdir():
        if path.name != name:  # of an interrupted run
            path.unlink()
    downloader = pooch.HTTPDownloader(progressbar=_Progress(progress), chunk_size=2**20, timeout=_TIMEOUT_SECONDS)
    fetcher = pooch.create(folder, "", registry={name: sha256}, urls={name: url}, retry_if_failed=RETRIES)
    host = urlsplit(url).netloc
    try:
        return Path(fetcher.fetch(name, downloader=downloader))
    except requests.HTTPError as error:
        answer = "an error" if error.response is None else error.response.status_code
        raise AudiovaeError(f"{url}: cannot be fetched: {host} answers {answer}; try it again later") from error
    except requests.RequestException as error:
        raise AudiovaeError(
            f"{url}: cannot be fetched: no connection to {host}, or it broke; check the network, and run it again"
        ) from error
    except ValueError as error:
        raise AudiovaeError(
            f"{url}: is not what was published: its SHA-256 is another one; the transfer was damaged, or it changed"
        ) from error


# Facts from torchaudio 2.11.
DOWNLOADS = {
    "LIBRISPEECH": Published(
        "http://www.openslr.org/resources/12/{}.tar.gz",
        {
            "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
            "dev-other": "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
            "test-clean": "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
            "test-other": "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
            "train-clean-100": "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
            "train-clean-360": "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
            "train-other-500": "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
        },
        ".",
        "LibriSpeech/{}",
        "train-clean-100",
    ),
    "LIBRITTS": Published(
        "http://www.openslr.org/resources/60/{}.tar.gz",
        {
            "dev-clean": "da0864e1bd26debed35da8a869dd5c04dfc27682921936de7cff9c8a254dbe1a",
            "dev-other": "d413eda26f3a152ac7c9cf3658ef85504dfb1b625296e5fa83727f5186cca79c",
            "test-clean": "234ea5b25859102a87024a4b9b86641f5b5aaaf1197335c95090cde04fe9a4f5",
            "test-other": "33a5342094f3bba7ccc2e0500b9e72d558f72eb99328ac8debe1d9080402f10d",
            "train-clean-100": "c5608bf1ef74bb621935382b8399c5cdd51cd3ee47cec51f00f885a64c6c7f6b",
            "train-clean-360": "ce7cff44dcac46009d18379f37ef36551123a1dc4e5c8e4eb73ae57260de4886",
            "train-other-500": "e35f7e34deeb2e2bdfe4403d88c8fdd5fbf64865cae41f027a185a6965f0a5df",
        },
        ".",
        "LibriTTS/{}",
        "train-clean-100",
    ),
    "VCTK": Published(
        "https://datashare.is.ed.ac.uk/bitstream/handle/10283/3443/VCTK-Corpus-0.92.zip",
        {"": "f96258be9fdc2cbff6559541aae7ea4f59df3fcaf5cf963aae5ca647357e359c"},
        "VCTK-Corpus-0.92",
        "wav48_silence_trimmed",
    ),
    "LJSPEECH": Published(
        "https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2",
        {"": "be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5"},
        ".",
        "LJSpeech-1.1",
    ),
    "CMUARCTIC": Published(
        "http://www.festvox.org/cmu_arctic/packed/cmu_us_{}_arctic.tar.bz2",
        {
            "aew": "645cb33c0f0b2ce41384fdd8d3db2c3f5fc15c1e688baeb74d2e08cab18ab406",
            "ahw": "024664adeb892809d646a3efd043625b46b5bfa3e6189b3500b2d0d59dfab06c",
            "aup": "2c55bc3050caa996758869126ad10cf42e1441212111db034b3a45189c18b6fc",
            "awb": "d74a950c9739a65f7bfc4dfa6187f2730fa03de5b8eb3f2da97a51b74df64d3c",
            "axb": "dd65c3d2907d1ee52f86e44f578319159e60f4bf722a9142be01161d84e330ff",
            "bdl": "26b91aaf48b2799b2956792b4632c2f926cd0542f402b5452d5adecb60942904",
            "clb": "3f16dc3f3b97955ea22623efb33b444341013fc660677b2e170efdcc959fa7c6",
            "eey": "8a0ee4e5acbd4b2f61a4fb947c1730ab3adcc9dc50b195981d99391d29928e8a",
            "fem": "3fcff629412b57233589cdb058f730594a62c4f3a75c20de14afe06621ef45e2",
            "gka": "dc82e7967cbd5eddbed33074b0699128dbd4482b41711916d58103707e38c67f",
            "jmk": "3a37c0e1dfc91e734fdbc88b562d9e2ebca621772402cdc693bbc9b09b211d73",
            "ksp": "8029cafce8296f9bed3022c44ef1e7953332b6bf6943c14b929f468122532717",
            "ljm": "b23993765cbf2b9e7bbc3c85b6c56eaf292ac81ee4bb887b638a24d104f921a0",
            "lnh": "4faf34d71aa7112813252fb20c5433e2fdd9a9de55a00701ffcbf05f24a5991a",
            "rms": "c6dc11235629c58441c071a7ba8a2d067903dfefbaabc4056d87da35b72ecda4",
            "rxr": "1fa4271c393e5998d200e56c102ff46fcfea169aaa2148ad9e9469616fbfdd9b",
            "slp": "54345ed55e45c23d419e9a823eef427f1cc93c83a710735ec667d068c916abf1",
            "slt": "7c173297916acf3cc7fcab2713be4c60b27312316765a90934651d367226b4ea",
        },
        "ARCTIC",
        "cmu_us_{}_arctic",
        "bdl",
    ),
}
