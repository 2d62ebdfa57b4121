"""Free corpora are fetched from a server once, verified, and unpacked whole."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import soundfile
from conftest import speech_like

from audiovae.cli.main import main
from audiovae.corpora import download as download_module
from audiovae.corpora.download import DOWNLOADS, Published, download
from audiovae.errors import AudiovaeError, CorpusError

RATE = 16000


class Server(ThreadingHTTPServer):
    """Of files by path, on loopback.

    Attributes:
        asked: for which paths.
        failures: answers that are still errors.
        cut: bytes after which the next answer ends; None: whole.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.failures = 0
        self.cut: int | None = None
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.failures:
            self.server.failures -= 1
            self.send_error(503)
            return
        content = self.server.files[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.server.cut])
        self.server.cut = None

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def sound(pitch: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.5 * speech_like(0.5, pitch), RATE, format="WAV")
    return file.getvalue()


def archive(kind: str, part: str) -> bytes:
    content = {f"Tiny/{part}/s{i}/a.wav": sound(100 + 20 * i) for i in range(3)}
    stored = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stored, "w") as zipped:
            for name, data in content.items():
                zipped.writestr(name, data)
    else:
        with tarfile.open(fileobj=stored, mode=f"w:{kind}") as tar:
            for name, data in content.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return stored.getvalue()


@pytest.fixture(autouse=True)
def tiny(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """TINY in two parts, and ZIPPED in one."""
    monkeypatch.setattr(download_module, "RETRIES", 1)
    server.files = {"/a.tar.gz": archive("gz", "a"), "/b.tar.gz": archive("gz", "b"), "/z.zip": archive("zip", "z")}
    sums = {path: hashlib.sha256(content).hexdigest() for path, content in server.files.items()}
    parts = {"a": sums["/a.tar.gz"], "b": sums["/b.tar.gz"]}
    tiny = Published(server.url + "/{}.tar.gz", parts, ".", "Tiny/{}", "a")
    monkeypatch.setitem(DOWNLOADS, "TINY", tiny)
    monkeypatch.setitem(DOWNLOADS, "ZIPPED", Published(server.url + "/z.zip", {"": sums["/z.zip"]}, "below", "Tiny"))


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_corpus_is_fetched_once(server: Server, tmp_path: Path) -> None:
    done = []
    download("tiny", tmp_path, lambda *progress: done.append(progress))
    assert names(tmp_path) == [f"Tiny/a/s{i}/a.wav" for i in range(3)]
    assert (tmp_path / "Tiny/a/s1/a.wav").read_bytes() == sound(120)
    download("TINY:a", tmp_path)
    assert server.asked == ["/a.tar.gz"]
    assert done
    download("TINY:b", tmp_path)
    download("ZIPPED", tmp_path)
    assert server.asked == ["/a.tar.gz", "/b.tar.gz", "/z.zip"]
    assert len(names(tmp_path)) == 9
    assert names(tmp_path / "below") == [f"Tiny/z/s{i}/a.wav" for i in range(3)]


def test_prepare_fetches_and_packs(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["prepare", str(tmp_path / "corpora"), str(tmp_path / "packed"), "--download", "TINY", "--json"]
    for n_new in (3, 0):
        assert main(arguments) == 0
        assert json.loads(capsys.readouterr().out)["new"] == n_new
    assert server.asked == ["/a.tar.gz"]


def test_what_is_not_what_was_published_is_refused(server: Server, tmp_path: Path) -> None:
    server.files["/a.tar.gz"] = server.files["/b.tar.gz"]
    with pytest.raises(
        AudiovaeError, match=r"http://127\.0\.0\.1:\d+/a\.tar\.gz: is not what was published: its SHA-256 is"
    ):
        download("TINY:a", tmp_path)
    assert names(tmp_path) == []
    assert server.asked == ["/a.tar.gz"] * 2  # tried once more


@pytest.mark.parametrize("trouble", ["refusal", "broken line"])
def test_a_transfer_that_fails_is_tried_again(trouble: str, server: Server, tmp_path: Path) -> None:
    if trouble == "refusal":
        server.failures = 1
    else:
        server.cut = 100
    download("TINY:a", tmp_path)
    assert server.asked == ["/a.tar.gz"] * 2
    assert len(names(tmp_path)) == 3


def test_a_server_that_keeps_failing_is_named_with_its_answer(server: Server, tmp_path: Path) -> None:
    server.failures = 9
    with pytest.raises(
        AudiovaeError, match=r"a\.tar\.gz: cannot be fetched: 127\.0\.0\.1:\d+ answers 503; try it again"
    ):
        download("TINY:a", tmp_path)


def test_without_a_network_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(DOWNLOADS, "TINY", Published("http://127.0.0.1:9/a.tar.gz", {"": "0" * 64}, ".", "Tiny"))
    with pytest.raises(AudiovaeError, match=r"^http://127\.0\.0\.1:9/a\.tar\.gz: cannot be fetched: no connection to"):
        download("TINY", tmp_path)
    assert capfd.readouterr() == ("", "")


def test_an_archive_that_cannot_be_unpacked_is_refused(server: Server, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"no archive").hexdigest()
    server.files["/a.tar.gz"] = b"no archive"
    DOWNLOADS["TINY"].sha256["a"] = digest
    with pytest.raises(CorpusError, match=r"TINY:a cannot be unpacked here \(.*\); check the folder"):
        download("TINY:a", tmp_path)


def test_what_was_interrupted_is_done_again(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        (tmp_path / "Tiny" / "a").mkdir(parents=True)
        (tmp_path / "Tiny" / "a" / "half.wav").write_bytes(b"x")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractall", interrupted)
        with pytest.raises(KeyboardInterrupt):
            download("TINY:a", tmp_path)
    (tmp_path / ".fetched-a" / "tmp1234").write_bytes(b"the beginning of a transfer")
    download("TINY:a", tmp_path)
    assert server.asked == ["/a.tar.gz"]  # the archive was whole
    assert {f"Tiny/a/s{i}/a.wav" for i in range(3)} <= set(names(tmp_path))
    assert not (tmp_path / ".fetched-a").exists()


def test_a_damaged_archive_is_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".fetched-a").mkdir()
    (tmp_path / ".fetched-a" / "a.tar.gz").write_bytes(server.files["/a.tar.gz"][:-9])
    download("TINY:a", tmp_path)
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("TINI", r"--download TINI: not a corpus that can be fetched; did you mean TINY\?"),
        ("TINY:c", r"--download TINY:c: TINY has no such part; known are a, b"),
        ("ZIPPED:a", r"--download ZIPPED:a: ZIPPED has no parts; give ZIPPED alone"),
        ("LIBRISPEECH:dev-clear", r"has no such part; did you mean dev-clean\?"),
    ],
)
def test_a_wrong_name_is_told_the_right_one(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(AudiovaeError, match=message):
        download(name, tmp_path)


def test_every_corpus_has_an_address_and_a_sum_for_each_part() -> None:
    for name, published in DOWNLOADS.items():
        assert published.default in published.sha256, name
        assert ("{}" in published.url) == ("" not in published.sha256), name
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in published.sha256.values()), name


def test_the_sums_are_those_that_torchaudio_has() -> None:
    datasets = pytest.importorskip("torchaudio.datasets", exc_type=ImportError)
    for name, module in (("LIBRISPEECH", datasets.librispeech), ("CMUARCTIC", datasets.cmuarctic)):
        published = DOWNLOADS[name]
        known = {path.rpartition("/")[2]: digest for path, digest in module._CHECKSUMS.items()}
        assert {published.url.format(part).rpartition("/")[2]: d for part, d in published.sha256.items()} == known
