"""The page as it is served and used: who may ask, what leaves the machine (nothing), and every control in Chromium.

One server for all of it. AUDIOVAE_SCREENSHOTS names a folder that keeps a picture of every tab at both widths.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile

from audiovae import enhance
from audiovae.app import compare, denoise, inside, live, separate
from audiovae.app.server import SETTINGS
from audiovae.app.sounds import load_prior, read_sound
from audiovae.audio import Wave, read, resample
from audiovae.cli.main import main
from audiovae.separation import stream

pytest.importorskip("gradio")
pytestmark = pytest.mark.xdist_group("app")  # one server

WIDTHS = (1280, 390)
SECONDS = 180  # that anything may take on a busy machine
# A server whose every look-up and connection is written down.
AUDITED = """
import sys
log = open(sys.argv[1], "a", buffering=1)
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind"):
        address = arguments[1] if event in ("socket.connect", "socket.sendto", "socket.bind") else arguments[0]
        log.write(f"{event} {address[0] if isinstance(address, tuple) else address}\\n")
sys.addaudithook(hook)
from audiovae.cli.main import main
sys.exit(main(sys.argv[2:]))
"""

SAID = "stderr.txt"


@dataclass
class Server:
    """A running page.

    Attributes:
        log: what it asked the network for.
        folder: where its private folder is.
    """

    process: subprocess.Popen[str]
    address: str
    log: Path
    folder: Path

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(self.address).port, timeout=SECONDS)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def sound(self, address: str) -> tuple[Wave, int]:
        content = io.BytesIO(self.ask(urlsplit(address).path + "?" + urlsplit(address).query)[1])
        assert soundfile.info(content).subtype == "FLOAT"
        content.seek(0)
        wave, rate = soundfile.read(content, dtype="float32", always_2d=True)
        return wave.T, rate


def begun(folder: Path, *options: str) -> Server:
    log = folder / "network.txt"
    environment = {**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", AUDITED, str(log), "app", "--port", "0", "--no-browser", *options]
    with open(folder / SAID, "w") as said:  # a pipe that nobody reads would fill
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=said, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    while line.startswith("{") and not line.endswith("}\n"):
        line += process.stdout.readline()
    if not line:
        process.wait()
        pytest.fail((folder / SAID).read_text())
    address = json.loads(line)["address"] if "--json" in options else line.removesuffix(" (Ctrl-C ends it)\n")
    return Server(process, address, log, folder)


def ended(server: Server, number: signal.Signals) -> str:
    """Its error stream, when it has ended as it should."""
    server.process.send_signal(number)
    output, _ = server.process.communicate(timeout=SECONDS)
    assert output == ""
    assert server.process.returncode == 128 + number
    assert sorted(path.name for path in server.folder.iterdir() if path.name != "matplotlib") == [
        "network.txt",
        SAID,
    ]
    return (server.folder / SAID).read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = begun(tmp_path_factory.mktemp("page"))
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.process.communicate()


def test_the_page_answers_this_machine_alone(server: Server) -> None:
    port = urlsplit(server.address).port
    assert server.ask("/")[0] == 200
    assert server.ask("/", Host=f"local{'host'}:{port}")[0] == 200
    for path in ("/", "/config", "/live", "/gradio_api/info"):
        assert server.ask(path, Host="evil.example") == (400, b"Invalid host header")
        assert server.ask(path, Origin="http://evil.example") == (403, b"Not from another page")
        assert server.ask(path, Origin="null")[0] == 403
    assert server.ask("/", Origin=server.address.rstrip("/"))[0] == 200
    other = http.client.HTTPConnection("127.0.0.2", port, timeout=5)
    with pytest.raises(OSError, match="refused"):
        other.request("GET", "/")


def test_what_the_page_keeps_is_seen_by_its_user_alone(server: Server) -> None:
    (folder,) = server.folder.glob("audiovae-app-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    status, content = server.ask("/gradio_api/file=" + str(Path(__file__)))
    assert status in (403, 404), content


def test_live_samples_come_back_as_the_speech_of_the_stream(server: Server) -> None:
    wave = resample(read(denoise.EXAMPLES / "speech-in-rain.ogg")[0], 16000, 48000)[0, :30000]
    status, content = server.ask("/live", "POST", json.dumps({"sample_rate": 48000, "lookahead": 0}).encode())
    began = json.loads(content)
    expected = stream(load_prior(live.PRIOR), sample_rate=48000, lookahead=0)
    assert status == 200
    assert began["latency_ms"] == pytest.approx(expected.latency / 48)
    answers = [
        server.ask(f"/live/{began['name']}", "POST", part.astype("<f4").tobytes())
        for part in np.split(wave, [5, 11000])
    ]
    assert [status for status, _ in answers] == [200, 200, 200]
    speech = np.frombuffer(b"".join(content for _, content in answers), "<f4")
    np.testing.assert_allclose(speech, expected.push(wave), atol=1e-6)
    for path, body, answer in (
        ("", b"{}", (400, b"the page asks for no conversation")),
        ("", b"[1]", (400, b"the page asks for no conversation")),
        (
            "",
            b'{"sample_rate": 5, "lookahead": 1}',
            (400, b"the microphone's rate must be from 8000 to 192000 Hz, got 5"),
        ),
        ("/other", b"\0\0\0\0", (400, b"this recording is gone; start again")),
        (f"/{began['name']}", b"\0\0\0", (400, b"a block holds half a sample")),
        (f"/{began['name']}", bytes(live.LARGEST_BLOCK_BYTES + 4), (413, b"a block is too long")),
    ):
        assert server.ask("/live" + path, "POST", body) == answer


def test_a_page_that_leaves_in_the_middle_of_a_block_is_no_error(server: Server) -> None:
    """What the server says of it would stand in its error stream, which is read at its end."""
    with socket.create_connection(("127.0.0.1", urlsplit(server.address).port)) as connection:
        connection.sendall(b"POST /live/some HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 4000\r\n\r\n" + bytes(40))
        time.sleep(0.2)
    time.sleep(0.2)
    assert server.ask("/")[0] == 200
    assert (server.folder / SAID).read_text() == ""


# In the browser


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two channels at 48 kHz, beyond full scale."""
    wave = resample(read(denoise.EXAMPLES / "speech-in-rain.ogg")[0], 16000, 48000)[:, 20000:120000]
    path = tmp_path_factory.mktemp("talk") / "my talk.wav"
    soundfile.write(path, np.concatenate([4 * wave, wave]).T, 48000, subtype="FLOAT")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    heard = tmp_path_factory.mktemp("microphone") / "microphone.wav"
    waves = [read(denoise.EXAMPLES / f"speech-in-{noise}.ogg")[0][0] for noise in ("rain", "hum")]
    soundfile.write(heard, resample(np.concatenate(waves), 16000, 48000), 48000, subtype="PCM_16")
    arguments = [
        "--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={heard}",
    ]  # fmt: skip
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=chromium, args=arguments)
        yield opened
        opened.close()


class Visit:
    """A page in the browser at one width, and what went wrong on it."""

    def __init__(self, browser: Any, server: Server, width: int, pictures: Path) -> None:
        self.server, self.width, self.pictures = server, width, pictures
        self.complaints: list[str] = []
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="light" if width > 500 else "dark"
        )
        context.set_default_timeout(1000 * SECONDS)
        self.page = context.new_page()
        self.page.on("request", lambda request: self._look_at(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)
        self.page.goto(server.address)
        self.page.get_by_role("button", name="speech in rain").wait_for()

    def _look_at(self, address: str) -> None:
        if not re.match(rf"(blob:|data:)|{re.escape(self.server.address)}", address.removeprefix("blob:")):
            self.complaints.append(f"asked {address}")

    def tab(self, name: str) -> None:
        tab = self.page.get_by_role("tab", name=name, exact=True)
        if tab.count() and tab.is_visible():
            tab.click()
        else:  # no room for it
            self.page.locator(".overflow-menu > button").click()
            self.page.locator(".overflow-dropdown button", has_text=name).click()

    def give(self, place: str, path: Path) -> None:
        self.page.locator(f"#{place} input[type=file]").set_input_files(path)
        self.page.locator(f"#{place}").get_by_label("Play", exact=True).wait_for()

    def choose(self, within: str, label: str, option: str) -> None:
        box = self.page.get_by_role("tabpanel").filter(visible=True).get_by_label(label).filter(visible=True).first
        box.click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def slide(self, place: str, value: float) -> None:
        number = self.page.locator(f"#{place} input[type=number]")
        number.fill(str(value))
        number.press("Enter")
        number.blur()

    def sound(self, place: str, other_than: str = "") -> tuple[Wave, int, str]:
        """The sound that a player has for download, as soon as it is another one; and its address."""
        link = self.page.locator(f"#{place} a[download]")
        deadline = time.monotonic() + SECONDS
        while (address := link.get_attribute("href") if link.count() else "") in ("", None, other_than):
            assert time.monotonic() < deadline, f"{place}: no sound"
            time.sleep(0.05)
        assert address is not None
        return *self.server.sound(address), address

    def told(self, place: str, pattern: str) -> str:
        found = self.page.locator(f"#{place}").get_by_text(re.compile(pattern))
        found.first.wait_for()
        return str(found.first.inner_text())

    def picture(self, name: str) -> None:
        self.page.screenshot(path=self.pictures / f"{name}-{self.width}.png", full_page=True)
        assert self.page.evaluate("document.documentElement.scrollWidth") <= self.width, (
            f"{name} is wider than the page"
        )
        clipped = self.page.evaluate(
            "[...document.querySelectorAll('.picture svg')].filter(e => e.checkVisibility()).map(e => e.scrollWidth)"
        )
        assert all(0 < width <= self.width for width in clipped)


def drive_denoise(visit: Visit, talk: Path) -> None:
    page = visit.page
    for noise in ("babble", "hum", "rain"):
        page.get_by_role("button", name=f"speech in {noise}").click()
        page.locator("#denoise-sound").get_by_text("0:04").wait_for()
    visit.choose("", "Method", "fast")
    page.locator("#denoise-start").click()
    heard, rate, first = visit.sound("denoise-speech")
    example = read_sound(denoise.EXAMPLES / "speech-in-rain.ogg")
    assert rate == 16000
    np.testing.assert_allclose(heard, enhance(example.wave, 16000, "fast"), atol=1e-5)
    page.locator("#denoise-sound").get_by_label("Clear").click()
    visit.give("denoise-sound", talk)
    visit.choose("", "Prior", "speech-16k-separation")
    page.locator("#denoise-start").click()
    speech, rate, _ = visit.sound("denoise-speech", first)
    noisy, _, _ = visit.sound("denoise-noisy")
    given = read_sound(talk)
    np.testing.assert_array_equal(noisy, given.wave)  # its rate, channels and level, beyond full scale
    assert (rate, np.abs(noisy).max() > 1) == (48000, True)
    expected = enhance(given.wave, 48000, "fast", prior=load_prior("speech-16k-separation"))
    np.testing.assert_allclose(speech, expected, atol=1e-5)
    residual, _, _ = visit.sound("denoise-residual")
    np.testing.assert_allclose(speech + residual, noisy, atol=1e-6)
    command = page.locator("#denoise-command .cm-content").inner_text()
    assert " ".join(command.split()) == (
        "audiovae enhance 'my talk.wav' -o 'my talk-speech.wav' --residual residual --method fast "
        "--model speech-16k-separation"
    )
    visit.picture("denoise")
    page.get_by_label("a file", exact=True).check()
    visit.give("denoise-noise", denoise.EXAMPLES / "speech-in-hum.ogg")
    visit.slide("denoise-snr", -3)
    page.locator("#denoise-start").click()
    visit.told("denoise-told", "SI-SDR re what was loaded")
    noisy, _, _ = visit.sound("denoise-noisy")
    added = noisy - given.wave
    assert 10 * np.log10(np.sum(given.wave**2) / np.sum(added**2)) == pytest.approx(-3, abs=0.01)
    for kind in ("white", "pink"):
        page.get_by_label(kind, exact=True).check()
    page.get_by_label("none", exact=True).check()


def drive_microphone(visit: Visit) -> None:
    """A recording of the browser goes the same way."""
    page = visit.page
    page.locator("#denoise-sound").get_by_label("Clear").click()
    page.locator("#denoise-sound").get_by_label("Record audio").click()
    page.locator("#denoise-sound button.record-button").click()
    page.wait_for_timeout(1500)
    page.locator("#denoise-sound button.stop-button:visible").click()
    page.locator("#denoise-sound").get_by_label("Play", exact=True).wait_for()
    before = visit.sound("denoise-speech")[2]
    page.locator("#denoise-start").click()
    speech, rate, _ = visit.sound("denoise-speech", before)
    noisy, _, _ = visit.sound("denoise-noisy")
    assert noisy.shape[1] > rate / 2
    assert np.abs(noisy).max() > 0.01
    expected = enhance(noisy, rate, "fast", prior=load_prior("speech-16k-separation"))
    np.testing.assert_allclose(speech, expected, atol=1e-5)


def drive_inside(visit: Visit, talk: Path) -> None:
    page = visit.page
    visit.tab("Look inside")
    visit.give("inside-sound", talk)
    visit.choose("", "Prior", "speech-16k-fast")
    page.get_by_label("sample", exact=True).check()
    page.get_by_label("mean", exact=True).check()
    page.locator("#inside-start").click()
    prior, given = load_prior("speech-16k-fast"), read_sound(talk)
    looked = inside.look_inside(prior, given)
    assert inside.told(prior, looked).split(",")[0] in visit.told("inside-told", "nats per frame")
    again, rate, first = visit.sound("inside-resynthesis")
    assert rate == 48000
    np.testing.assert_allclose(again, inside.resynthesize(prior, looked, {})[0], atol=1e-4)
    n_frames = len(looked.latents)
    image = page.locator("#inside-power svg image")
    box = image.bounding_box()
    image.click(position={"x": box["width"] / 4, "y": box["height"] / 2})
    quarter = (n_frames - 1) / 4
    visit.told("inside-frame-told", rf"Frame ({int(quarter) - 1}|{int(quarter)}|{int(quarter) + 1}) of {n_frames}")
    before = page.locator("#inside-frame-picture").inner_html()
    visit.slide("inside-frame", 3)
    assert visit.told("inside-frame-told", f"Frame 3 of {n_frames}, at 0.05 s, bound")
    assert page.locator("#inside-frame-picture").inner_html() != before
    visit.slide("inside-latent-1", 1.5)
    moved, _, _ = visit.sound("inside-resynthesis", first)
    expected, _ = inside.resynthesize(prior, looked, {looked.ranked[1]: 1.5})
    np.testing.assert_allclose(moved, expected, atol=1e-4)
    assert np.abs(moved - again).max() > 1e-3
    visit.picture("inside")


def drive_separate(visit: Visit) -> None:
    page = visit.page
    visit.tab("Separate")
    page.locator("#separate-example").click()
    page.locator("#separate-sound").get_by_text("0:04").wait_for()
    visit.choose("", "Method", "iva")
    visit.slide("separate-sources", 2)
    page.locator("#separate-start").click()
    visit.told("separate-told", "Mean powers re full scale")
    room = separate.made_up_room()
    expected = separate.parts_of(room, 16000, 2, "iva")
    for n, wave in enumerate([room[:1], *expected.values()]):
        np.testing.assert_allclose(visit.sound(f"separate-part-{n}")[0], wave, atol=1e-5)
    visit.picture("separate")


def drive_compare(visit: Visit, talk: Path) -> None:
    page = visit.page
    visit.tab("Compare")
    visit.give("compare-first", talk)
    visit.give("compare-second", denoise.EXAMPLES / "speech-in-hum.ogg")
    page.locator("#compare-start").click()
    prior = load_prior("speech-16k")
    first = inside.look_inside(prior, read_sound(talk))
    second = inside.look_inside(prior, read_sound(denoise.EXAMPLES / "speech-in-hum.ogg"))
    half, rate, address = visit.sound("compare-between")
    assert rate == 16000
    np.testing.assert_allclose(half, compare.between(prior, first, second, 0.5).wave, atol=1e-3)
    visit.slide("compare-share", 0.25)
    quarter, _, _ = visit.sound("compare-between", address)
    assert quarter.shape == compare.between(prior, first, second, 0.25).wave.shape
    assert f"{float(first.bound.mean()):.1f}" in page.locator("#compare-numbers").inner_text()  # type: ignore[union-attr]
    visit.picture("compare")


def drive_live(visit: Visit) -> None:
    page = visit.page
    visit.tab("Live")
    page.locator("#live-lookahead").select_option("0")
    page.locator("#live-start").click()
    visit.told("live-told", r"Latency \d+ ms: \d+\.\d ms of the method, \d+ ms of blocks")
    for hear in ("microphone", "nothing", "speech"):
        page.locator("#live-hear").select_option(hear)
        page.wait_for_timeout(600)  # of sound
    page.locator("#live-stop").click()
    told = visit.told("live-heard-told", "the speech comes")
    heard, rate, _ = visit.sound("live-microphone")
    speech, _, _ = visit.sound("live-speech")
    expected = stream(load_prior(live.PRIOR), sample_rate=rate, lookahead=0)
    assert f"{1000 * expected.latency / rate:.1f} ms later" in told
    assert heard.shape[1] > rate / 4
    assert np.abs(heard).max() > 0.01  # the file that stands for a microphone
    np.testing.assert_allclose(speech[0], expected.push(heard[0]), atol=1e-5)
    visit.picture("live")


def refuse(visit: Visit, tmp_path: Path) -> None:
    """What is wrong is told in one line, and no traceback."""
    page = visit.page
    visit.tab("Denoise")
    path = tmp_path / "text.wav"
    path.write_text("no sound")
    page.locator("#denoise-sound").get_by_label("Clear").click()
    page.locator("#denoise-start").click()
    page.get_by_text("no sound yet: record one, drop a file, or take an example").wait_for()
    page.locator("#denoise-sound").get_by_label("Upload file").click()
    page.locator("#denoise-sound input[type=file]").set_input_files(path)
    page.locator("#denoise-sound").get_by_label("Clear").wait_for()
    page.locator("#denoise-start").click()
    page.get_by_text("text.wav: is not a sound file, or a damaged one; restore it").wait_for()
    assert "Traceback" not in page.content()


@pytest.mark.parametrize("width", WIDTHS)
def test_every_control_does_what_the_library_does(
    server: Server, browser: Any, talk: Path, tmp_path: Path, width: int
) -> None:
    pictures = Path(os.environ.get("AUDIOVAE_SCREENSHOTS") or tmp_path)
    pictures.mkdir(parents=True, exist_ok=True)
    visit = Visit(browser, server, width, pictures)
    drive_denoise(visit, talk)
    drive_microphone(visit)
    drive_inside(visit, talk)
    drive_separate(visit)
    drive_compare(visit, talk)
    drive_live(visit)
    assert visit.complaints == []
    refuse(visit, tmp_path)
    visit.page.context.close()


# Its end


def test_the_server_asked_nobody_but_this_machine_and_ends_without_a_trace(server: Server) -> None:
    assert ended(server, signal.SIGTERM) == "audiovae: terminated\n"
    asked = {line.split()[1] for line in server.log.read_text().splitlines()}
    assert asked <= {"127.0.0.1", "local" + "host"}
    assert "127.0.0.1" in asked  # the hook hears


def test_ctrl_c_ends_it_and_a_port_in_use_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = begun(tmp_path, "--json")
    port = urlsplit(running.address).port
    with pytest.raises(SystemExit) as left:
        main(["app", "--port", str(port), "--no-browser"])
    line = f"audiovae: app: port {port} is not free (Address already in use); choose another --port, or 0 for any\n"
    assert (left.value.code, capsys.readouterr().err) == (2, line)
    assert ended(running, signal.SIGINT) == "audiovae: interrupted\n"


def test_gradio_is_asked_for_by_the_name_of_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (*SETTINGS, "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")  # so that they are as they were afterwards
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as left:
        main(["app", "--port", "0", "--no-browser"])
    assert left.value.code == 2
    assert capsys.readouterr().err == "audiovae: app needs gradio: pip install 'audiovae[app]'\n"


@pytest.mark.parametrize("port", ["65536", "-1", "http"])
def test_a_port_is_a_number(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["app", f"--port={port}"])
    assert "expected a number from 0 to 65535" in capsys.readouterr().err
