"""The page: one file, with pictures that can be seen and sound that can be heard."""

from __future__ import annotations

import base64
import html
import io
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from audiovae import AudioVAE
from audiovae.errors import AudiovaeError
from audiovae.report import page as page_module
from audiovae.report import plots
from audiovae.report.index import write_index
from audiovae.report.markup import write_page
from audiovae.report.page import Evaluation, ReportedFile, write_report

RATE = 16000
ODD_NAME = "a <b>&\"quoted\" 'n' ü.wav"


class Page(HTMLParser):
    """Tags, sources and visible text of a page; fails where tags do not close."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def content(self, tag: str) -> list[bytes]:
        """What the sources of these tags hold."""
        sources = [
            str(attributes.get("src") or attributes.get("href")) for name, attributes in self.tags if name == tag
        ]
        return [base64.b64decode(source.split(";base64,")[1], validate=True) for source in sources]


def reported(path: Path, **values: float) -> ReportedFile:
    return ReportedFile(
        path, {"nll": 1300.0, "kl": 50.5, "bound": 1350.5, "si_sdr": 7.25, **values}, {"pesq": "not installed"}
    )


@pytest.fixture(scope="module")
def page(prior: AudioVAE, toy_corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    folder = tmp_path_factory.mktemp("report")
    wave, rate = soundfile.read(toy_corpus_folder / "speaker0" / "0.wav")
    soundfile.write(folder / ODD_NAME, wave, rate)
    soundfile.write(folder / "silent.wav", np.zeros(8000), RATE)
    files = [reported(folder / ODD_NAME, estoi=0.875, iw_bound=1320.25), reported(folder / "silent.wav", si_sdr=9.25)]
    write_report(folder / "report.html", [Evaluation("speech-16k", prior, files)], "A <title> & more", "note: 1 < 2")
    return folder / "report.html", Page(folder / "report.html")


def test_the_page_needs_nothing_but_itself(page: tuple[Path, Page]) -> None:
    path, parsed = page
    sources = [
        value
        for _, attributes in parsed.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "poster")
    ]
    assert sources
    assert all(str(source).startswith(("data:", "#")) for source in sources)
    without_data = re.sub(r'(src|href)="data:[^"]*"', "", path.read_text(encoding="utf-8"))
    assert not re.search(
        r"(https?:)?//|file:|url\((?!#)|@import|<script |<link|<iframe",
        without_data.replace(html.escape(str(path.parent)), ""),
    )


def test_the_sounds_are_the_recording_and_its_resyntheses_at_the_rate_of_the_model(
    page: tuple[Path, Page], prior: AudioVAE, toy_corpus_folder: Path
) -> None:
    import librosa

    sounds = [soundfile.read(io.BytesIO(content)) for content in page[1].content("audio")]
    assert len(sounds) == 3
    assert all(rate == prior.sample_rate for _, rate in sounds)
    trimmed = librosa.effects.trim(soundfile.read(toy_corpus_folder / "speaker0" / "0.wav")[0], top_db=30)[0]
    expected = prior.resynthesize(torch.from_numpy(trimmed.astype(np.float32))).detach().numpy()
    for (wave, _), reference, other in zip(sounds[:2], (trimmed, expected), (expected, trimmed), strict=True):
        assert len(wave) == len(trimmed)
        likeness = np.corrcoef([wave, reference, other])[0]
        assert likeness[1] > 0.85  # MP3: what sounds like noise is not kept to the sample
        assert likeness[1] > likeness[2] + 0.05
    levels = [np.sqrt(np.mean(wave**2)) for wave, _ in sounds]
    assert max(levels) < 1.1 * min(levels)  # none is louder but by what MP3 drops: a louder one always seems better


def test_the_pictures_can_be_decoded(page: tuple[Path, Page]) -> None:
    pictures = [Image.open(io.BytesIO(content)) for content in page[1].content("image")]
    assert [picture.format for picture in pictures] == ["WEBP"] * 3  # spectrogram, PSD, latents
    for picture in pictures:
        picture.load()
        assert picture.width > 500
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 20
    assert [tag for tag, _ in page[1].tags].count("svg") == 4  # and the KL


def test_odd_names_titles_and_notes_are_escaped(page: tuple[Path, Page]) -> None:
    path, parsed = page
    text = "\n".join(parsed.text)
    assert f"\n{ODD_NAME}\n" in text
    assert f"below {path.parent}" in text
    assert "A <title> & more" in text
    assert "note: 1 < 2" in text
    assert "b" not in {tag for tag, _ in parsed.tags}


@contextmanager
def plain_failures() -> Iterator[None]:
    """A failure within the block is reported in ASCII: file names that are no Unicode cannot pass between test
    processes.
    """
    try:
        yield
    except Exception as error:
        raise pytest.fail.Exception(ascii(error), pytrace=False) from None


def test_a_name_that_is_no_unicode_is_shown_somehow(prior: AudioVAE, toy_corpus_folder: Path, tmp_path: Path) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))  # from an old disc
    shutil.copy(toy_corpus_folder / "speaker0" / "0.wav", file)
    with plain_failures():
        write_report(tmp_path / "r.html", [Evaluation("m", prior, [reported(file)])], "t")
        assert any(re.search(r"caf.+\.wav", text) for text in Page(tmp_path / "r.html").text)


def test_the_table_holds_values_means_and_reasons(page: tuple[Path, Page]) -> None:
    text = " ".join(page[1].text)
    assert "1350.5" in text
    assert "8.25 ± 12.71" in text  # of 7.25 and 9.25: t(0.975, 1) = 12.706 times sqrt(2) / sqrt(2)
    assert "0.875" in text
    headings = [f"{name} (nats per frame)" for name in ("NLL", "KL", "NLL + KL", "bound (IW)")]
    assert " ".join(["file", *headings, "SI-SDR (dB)", "ESTOI (0 to 1)"]) in text
    assert "Not shown: silent." in text


def test_every_number_names_its_column_for_a_narrow_page(page: tuple[Path, Page]) -> None:
    names = [attributes["data-name"] for tag, attributes in page[1].tags if tag == "td" and "data-name" in attributes]
    columns = [f"{bound} (nats per frame)" for bound in ("NLL", "KL", "NLL + KL", "bound (IW)")] + ["SI-SDR (dB)"]
    assert names[: len(columns)] == columns
    rows = names.count(columns[0])
    assert rows > 1
    assert names == names[: len(names) // rows] * rows  # of every file, and of the mean
    assert "content: attr(data-name)" in page[0].read_text()


def test_frames_of_silence_that_were_left_out_are_no_metric(
    prior: AudioVAE, toy_corpus_folder: Path, tmp_path: Path
) -> None:
    file = toy_corpus_folder / "speaker0" / "0.wav"
    write_report(tmp_path / "r.html", [Evaluation("m", prior, [reported(file, silent_frames=12)])], "t")
    assert "NLL 1300.0, KL 50.50" in (tmp_path / "r.html").read_text()


def test_a_reason_stands_where_only_some_files_could_be_scored(
    prior: AudioVAE, toy_corpus_folder: Path, tmp_path: Path
) -> None:
    file = toy_corpus_folder / "speaker1" / "0.wav"
    rows = [ReportedFile(file, {"pesq": 3.5}, {}), ReportedFile(file, {}, {"pesq": "PESQ finds no <speech>"})]
    write_report(tmp_path / "r.html", [Evaluation("m", prior, rows)], "t")
    assert "PESQ finds no <speech>" in Page(tmp_path / "r.html").text


def test_several_priors_stand_side_by_side_and_long_lists_are_shortened(
    prior: AudioVAE, toy_corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "SHOWN_RECORDINGS", 2)
    found = [reported(toy_corpus_folder / f"speaker{n}" / "0.wav", si_sdr=float(n)) for n in range(3)]
    evaluations = [Evaluation("first & one", prior, found[:1]), Evaluation("second", prior, found)]
    write_report(tmp_path / "r.html", evaluations, "t")
    parsed = Page(tmp_path / "r.html")
    assert [attributes["aria-label"] for tag, attributes in parsed.tags if tag == "audio"] == [
        "original",  # once, for both
        *(f"{name}, {how}" for name in ("first & one", "second") for how in ("posterior mean", "sampled latents")),
        "original",
        "second, posterior mean",
        "second, sampled latents",
    ]
    sounds = [attributes["src"] for tag, attributes in parsed.tags if tag == "audio"]
    assert len(set(sounds[:1] + sounds[5:])) == 4
    head = parsed.text.index("prior")
    assert [text for text in parsed.text[head:] if text in ("first & one", "second")][:2] == ["first & one", "second"]
    assert "1.00 ± 2.48" in parsed.text  # of 0, 1, 2: t(0.975, 2) = 4.303 times 1 / sqrt(3)
    assert any("first 2 of 3 files" in text for text in parsed.text)


@pytest.mark.parametrize(
    ("wave", "rate"),
    [
        (np.full(1, 0.5), RATE),
        (np.full(4000, 0.3), RATE),
        (1e-7 * np.random.default_rng(0).standard_normal(4000), 8000),
        (np.ones((900, 3)), 44100),
    ],
    ids=["one sample", "constant", "faint", "three channels"],
)
def test_odd_recordings_have_pictures_and_sound(prior: AudioVAE, tmp_path: Path, wave: np.ndarray, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", wave, rate, "FLOAT")
    write_report(tmp_path / "r.html", [Evaluation("m", prior, [reported(tmp_path / "a.wav")])], "t")
    parsed = Page(tmp_path / "r.html")
    assert [tag for tag, _ in parsed.tags].count("svg") == 4
    for content in parsed.content("audio"):
        sound, sound_rate = soundfile.read(io.BytesIO(content))
        assert sound_rate == RATE
        assert 1 <= len(sound) <= math.ceil(len(wave) * RATE / rate)
        assert 0 < np.abs(sound).max() < 1


def test_a_prior_without_information_in_its_latents_is_warned_of(
    prior: AudioVAE, toy_corpus_folder: Path, tmp_path: Path
) -> None:
    import copy

    collapsed = copy.deepcopy(prior)
    with torch.no_grad():
        for parameter in collapsed.vae.encoder.parameters():
            parameter.zero_()
        spread = next(p for p in reversed(list(collapsed.vae.encoder.parameters())) if p.ndim == 1)[
            collapsed.vae.latent_dim :
        ]
        for candidate in torch.linspace(-3, 3, 2001):  # whatever maps it to a scale: take the one that is nearest to 1
            spread.copy_(candidate)
            scale = collapsed.vae.infer(torch.ones(1, 513)).factors[0].posterior.stddev
            if abs(float(scale[0, 0]) - 1) < 2e-3:
                break
    write_report(
        tmp_path / "r.html", [Evaluation("m", collapsed, [reported(toy_corpus_folder / "speaker1" / "0.wav")])], "t"
    )
    assert any("the posterior has collapsed: 0 of 8" in text for text in Page(tmp_path / "r.html").text)


@pytest.mark.parametrize("target", ["file.txt/report.html", "folder"])
def test_a_page_that_cannot_be_written_is_named(prior: AudioVAE, tmp_path: Path, target: str) -> None:
    (tmp_path / "file.txt").touch()
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AudiovaeError, match=rf"{target}: cannot be written"):
        write_report(tmp_path / target, [Evaluation("m", prior, [])], "t")
    assert sorted(tmp_path.rglob("*")) == before


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def test_decibels_are_below_the_loudest_bin_of_all_and_at_most_80() -> None:
    first, second = plots.decibels([torch.tensor([[1.0, 100.0]]), torch.tensor([[10.0, 0.0]])])
    assert np.allclose(first, [[-20.0, 0.0]], atol=1e-5)
    assert np.allclose(second, [[-10.0, -80.0]], atol=1e-5)
    assert np.allclose(plots.decibels([torch.zeros(2, 3)])[0], -80.0)


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn from here on."""
    drawn: list[Any] = []
    save = plots._svg
    monkeypatch.setattr(plots, "_svg", lambda figure: (drawn.append(figure), save(figure))[1])
    return drawn


def test_a_picture_has_low_frequencies_at_the_bottom_and_the_first_frame_at_the_left() -> None:
    powers = torch.zeros(4, 3)
    powers[0, 0] = 1.0  # first frame, lowest bin
    markup = plots.spectrogram(plots.decibels([powers])[0], 0.5, RATE)
    (source,) = re.findall(r'href="data:image/webp;base64,([^"]*)"', markup)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))).astype(int).sum(-1)
    flipped = "scale(1 -1)" in markup
    row, column = np.unravel_index(picture.argmax(), picture.shape)
    assert column < picture.shape[1] / 4
    assert (row < picture.shape[0] / 3) if flipped else (row > 2 * picture.shape[0] / 3)
    texts = re.findall(r">([^<>]+)</text>", markup)
    assert {"time (s)", "frequency (kHz)", "0.0", "0.8", "0", "8"} <= set(texts)


def test_a_picture_takes_its_colours_from_the_page(figure: list[Any]) -> None:
    markup = plots.over_time(torch.rand(10), 1.0, "share", (-0.03, 1.03))
    assert "stroke: var(--first)" in markup
    assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r'(href|id)="[^"]*"|url\([^)]*\)', "", markup))
    assert figure[0].axes[0].get_ylim() == (-0.03, 1.03)


def test_pictures_for_tensorboard_name_their_axes_and_their_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    save = plots._pixels
    monkeypatch.setattr(plots, "_pixels", lambda figure: (drawn.append(figure), save(figure))[1])
    pixels = plots.spectrogram_pixels({"spectrogram": torch.rand(5, 9), "decoded PSD": torch.rand(5, 9)}, 1.0, RATE)
    assert pixels.shape == (560, 700, 3)
    first, second, bar = drawn[0].axes
    assert (first.get_title(), second.get_title()) == ("spectrogram", "decoded PSD")
    assert {axis.get_xlabel() for axis in (first, second)} == {"time (s)"}
    assert {axis.get_ylabel() for axis in (first, second)} == {"frequency (kHz)"}
    assert bar.get_ylabel() == "dB re the loudest bin"
    plots.kl_pixels(torch.tensor([0.0, 2.0, 1.0]))
    (axis,) = drawn[1].axes
    assert [patch.get_height() for patch in axis.patches] == [2.0, 1.0, 0.0]
    assert axis.get_title() == "3.0 nats per frame, 2 of 3 dimensions active"


# ---------------------------------------------------------------------------------------------------------------------
# The index


def test_an_index_links_the_pages_below_its_folder_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "pages & more"
    write_page(folder / "a #1.html", "A <1>", "note", "", "3.00 s & loud")
    write_page(folder / "deep" / "b.html", "B", "its note", "")
    (folder / "other.html").write_text("<title>not ours</title>")
    for _ in range(2):  # it is written anew
        assert write_index(folder) == folder / "index.html"
        parsed = Page(folder / "index.html")
        links = [attributes["href"] for tag, attributes in parsed.tags if tag == "a"]
        assert links == ["a%20%231.html", "deep/b.html"]
        assert all((folder / unquote(str(link))).is_file() for link in links)
        for text in ("A <1>", "3.00 s & loud", "B", "its note", "2 pages."):
            assert text in parsed.text


def test_what_is_no_index_is_left(tmp_path: Path) -> None:
    write_page(tmp_path / "index.html", "index.wav, enhanced", "a page of a recording", "")
    before = (tmp_path / "index.html").read_bytes()
    with pytest.raises(AudiovaeError, match=r"index\.html: is no index of audiovae's"):
        write_index(tmp_path)
    assert (tmp_path / "index.html").read_bytes() == before
