"""Models of the hub: against a hub on loopback, by the hub's own library."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_hub import FakeHub, fake_hub, point_at

from audiovae import STFT, AudioVAE, FrameVAE, FrameVAESettings
from audiovae.cli.main import main
from audiovae.errors import ModelError
from audiovae.saved import CONFIG, FILES

huggingface_hub = pytest.importorskip("huggingface_hub")


def build(seed: int = 0) -> AudioVAE:
    torch.manual_seed(seed)
    return AudioVAE(STFT(64, 16), FrameVAE(33, FrameVAESettings(latent_dim=2, hidden=(4,))), 8000)


def files_of(prior: AudioVAE, folder: Path) -> dict[str, bytes]:
    prior.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """With owner/name, whose revision v2 is another model."""
    with fake_hub() as hub:
        point_at(hub, tmp_path / "cache", monkeypatch)
        revisions = {name: files_of(build(seed), tmp_path / name) for seed, name in enumerate(("main", "v2"))}
        revisions["main"]["malware.pkl"] = b"never asked for"
        hub.repositories["owner/name"] = revisions
        yield hub


def test_a_model_is_fetched_once_and_without_other_files(hub: FakeHub) -> None:
    assert AudioVAE.from_pretrained("owner/name").model_hash() == build().model_hash()
    fetched = {line.rpartition("/")[2] for line in hub.asked if line.startswith("GET /owner/name/resolve")}
    assert fetched == set(FILES)
    hub.asked.clear()
    assert AudioVAE.from_pretrained("owner/name").model_hash() == build().model_hash()
    assert not [line for line in hub.asked if "resolve" in line], "it is in the cache"


def test_a_revision_is_named_apart_or_after_the_name(hub: FakeHub) -> None:
    assert AudioVAE.from_pretrained("owner/name", revision="v2").model_hash() == build(1).model_hash()
    assert AudioVAE.from_pretrained("owner/name@v2").model_hash() == build(1).model_hash()
    with pytest.raises(ModelError, match="owner/name: no such folder, and the hub has it without a revision 'v3'"):
        AudioVAE.from_pretrained("owner/name@v3")


def test_without_a_network_the_cache_serves(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    AudioVAE.from_pretrained("owner/name")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert AudioVAE.from_pretrained("owner/name").model_hash() == build().model_hash()
    with pytest.raises(ModelError, match="the hub cannot be reached, nor is it in the cache"):
        AudioVAE.from_pretrained("owner/other")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    with pytest.raises(ModelError, match="the hub cannot be reached, nor is it in the cache"):
        AudioVAE.from_pretrained("owner/other")


def test_what_the_hub_gives_is_verified(hub: FakeHub) -> None:
    hub.repositories["owner/name"]["main"][CONFIG] = hub.repositories["owner/name"]["main"][CONFIG].replace(
        b"8000", b"8001"
    )
    with pytest.raises(ModelError, match="its fields do not match their SHA-256"):
        AudioVAE.from_pretrained("owner/name")


REASONS = {
    "owner/none": "the hub has no such repository, or a private one",
    "owner/gated": "the hub gives it to those alone who accepted its terms",
    "own er/name": "it is no name of a repository, which is owner/name",
}


@pytest.mark.parametrize("name", REASONS)
def test_each_failure_has_its_reason(name: str, hub: FakeHub) -> None:
    hub.gated.add("owner/gated")
    with pytest.raises(ModelError, match=REASONS[name]):
        AudioVAE.from_pretrained(name)


def test_without_the_library_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        ModelError, match=r"owner/name: no such folder; to load it from the hub: pip install 'audiovae\[hub\]'"
    ):
        AudioVAE.from_pretrained("owner/name")
    with pytest.raises(ModelError, match=r"owner/name: to share a model: pip install 'audiovae\[hub\]'"):
        build().push_to_hub("owner/name")


def test_a_repository_has_an_owner() -> None:
    with pytest.raises(ModelError, match="model: is not written: a repository is named owner/name"):
        build().push_to_hub("model")


def test_a_model_that_is_pushed_comes_back(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=r"owner/new: is not written: the hub asks for a token"):
        build(2).push_to_hub("owner/new")
    assert "owner/new" not in hub.repositories
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert build(2).push_to_hub("owner/new").startswith(f"{hub.url}/owner/new/commit/")
    assert hub.repositories["owner/new"]["main"].keys() == set(FILES)
    assert AudioVAE.from_pretrained("owner/new").model_hash() == build(2).model_hash()

    build(3).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "training").mkdir()
    (tmp_path / "model" / "training" / "trace.csv").touch()
    assert main(["push", str(tmp_path / "model"), "owner/new", "--revision", "next"]) == 0
    assert "load it with --model owner/new@next" in capsys.readouterr().out
    assert AudioVAE.from_pretrained("owner/new@next").model_hash() == build(3).model_hash()
    assert hub.repositories["owner/new"]["next"].keys() == set(FILES)
