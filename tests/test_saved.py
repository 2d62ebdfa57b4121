"""Model folders: the same bits back, and every damage refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import RATE, build_prior

from audiovae import STFT, AudioVAE, FrameVAE, FrameVAESettings, saved
from audiovae.errors import ModelError, PathError
from audiovae.saved import CARD, CONFIG, TENSORS, read_config
from audiovae.settings import MODEL_SETTINGS, settings_from_config, settings_to_config


def digest(config: dict[str, Any]) -> str:
    """SHA-256 of the fields as JSON with sorted keys, without the digest itself."""
    fields = {name: value for name, value in config.items() if name != "config_sha256"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def rewrite(folder: Path, **changes: Any) -> None:
    """Change fields of the config and sign it anew, as another program or version would."""
    config = {**json.loads((folder / CONFIG).read_text()), **changes}
    config["config_sha256"] = digest(config)
    (folder / CONFIG).write_text(json.dumps(config))


# Round trip ----------------------------------------------------------------------------------------------------------

SIZES = [
    ({}, {}),
    ({"n_fft": 512, "hop_length": 100, "window": "hann"}, {"latent_dim": 3, "hidden": (20, 10), "activation": "relu"}),
    (
        {"n_fft": 64, "hop_length": 16, "window": "hamming"},
        {"latent_dim": 1, "hidden": (8, 8), "residual": True, "dropout": 0.25},
    ),
]


@pytest.mark.parametrize(("stft", "settings"), SIZES)
def test_a_saved_model_gives_the_same_bits(stft: dict[str, Any], settings: dict[str, Any], tmp_path: Path) -> None:
    transform = STFT(**stft)
    vae = FrameVAE(transform.n_freqs, FrameVAESettings(**settings))
    vae.calibrate(torch.rand(50, transform.n_freqs) + 0.01)
    prior = AudioVAE(transform, vae, 22050).eval()
    prior.save_pretrained(tmp_path / "model")
    again = AudioVAE.from_pretrained(tmp_path / "model")
    assert again.sample_rate == 22050
    assert repr(again.stft) == repr(transform)
    assert again.vae.settings == vae.settings
    assert not again.training
    state, state_again = prior.state_dict(), again.state_dict()
    assert list(state) == list(state_again)
    assert all(torch.equal(state[name], state_again[name]) for name in state)
    wave = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.resynthesize(wave), prior.resynthesize(wave))


def test_a_loaded_model_is_saved_as_the_same_bytes(model_folder: Path, tmp_path: Path) -> None:
    AudioVAE.from_pretrained(model_folder).save_pretrained(tmp_path / "again")
    for name in (CONFIG, TENSORS, CARD):
        assert (tmp_path / "again" / name).read_bytes() == (model_folder / name).read_bytes()


def test_a_model_is_found_by_path_or_string(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert AudioVAE.from_pretrained(str(model_folder)).sample_rate == RATE
    monkeypatch.chdir(model_folder.parent)
    assert AudioVAE.from_pretrained("model", device="cpu").sample_rate == RATE


def test_a_model_folder_holds_sizes_tensors_and_a_card(model_folder: Path) -> None:
    """The layout of a hub repository: nothing else, nothing hidden, no pickle."""
    assert {path.name for path in model_folder.iterdir()} == {CONFIG, TENSORS, CARD}
    config = json.loads((model_folder / CONFIG).read_text())
    assert config["sample_rate"] == RATE
    assert config["stft"] == {"n_fft": 1024, "hop_length": 256, "window": "sine"}
    assert config["vae"]["type"] == "FrameVAE"
    assert config["vae"]["settings"]["hidden"] == [32]
    tensors = safetensors.torch.load_file(model_folder / TENSORS)
    assert (
        sum(tensor.numel() for name, tensor in tensors.items() if "log_power" not in name)
        == 513 * 32 + 32 + 33 * 16 + 9 * 32 + 33 * 513
    )
    assert not any("window" in name for name in tensors)


def test_a_card_is_written_as_it_is_given(prior: AudioVAE, tmp_path: Path) -> None:
    prior.save_pretrained(tmp_path, "# Größe\n")
    assert (tmp_path / CARD).read_text(encoding="utf-8") == "# Größe\n"
    prior.save_pretrained(tmp_path)
    assert "16000 Hz" in (tmp_path / CARD).read_text()


def test_a_model_loads_without_its_card(model_folder: Path) -> None:
    (model_folder / CARD).unlink()
    assert AudioVAE.from_pretrained(model_folder).sample_rate == RATE


def test_a_model_can_be_saved_over_another(model_folder: Path) -> None:
    build_prior(seed=1).save_pretrained(model_folder)
    assert AudioVAE.from_pretrained(model_folder).model_hash() == build_prior(seed=1).model_hash()


def killed_at(moment: int, folder: Path, model: AudioVAE) -> bool:
    """Save in a process that dies just before or after a renaming; False where it lived to its end."""
    process = os.fork()
    if not process:
        replace, renamings = os.replace, []

        def dying(source: Path, target: Path) -> None:
            renamings.append(target)
            if 2 * len(renamings) == moment + 1:
                os._exit(9)
            replace(source, target)
            if 2 * len(renamings) == moment:
                os._exit(9)

        os.replace = dying
        model.save_pretrained(folder)
        os._exit(0)
    return os.waitpid(process, 0)[1] != 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("is_first", [True, False])
def test_a_save_that_is_killed_leaves_the_old_model_or_the_new_one(tmp_path: Path, is_first: bool) -> None:
    old, new, last = build_prior(), build_prior(seed=1), build_prior(seed=2)
    hashes = {old.model_hash(): "old", new.model_hash(): "new", last.model_hash(): "last"}
    left = []
    for moment in range(1, 9):
        folder = tmp_path / str(moment)
        if not is_first:
            old.save_pretrained(folder)
        assert killed_at(moment, folder, new)
        if (folder / CONFIG).exists():
            left.append(hashes[AudioVAE.from_pretrained(folder).model_hash()])
        else:
            with pytest.raises(ModelError, match=r"is not a model folder: it has no config\.json"):
                AudioVAE.from_pretrained(folder)
            left.append("none")
        assert killed_at(moment, folder, last)  # over what the dead left
        assert (
            hashes[AudioVAE.from_pretrained(folder).model_hash()] in {left[-1], "last"}
            if (folder / CONFIG).exists()
            else left[-1] == "none"
        )
        last.save_pretrained(folder)
        assert AudioVAE.from_pretrained(folder).model_hash() == last.model_hash()
        assert not (folder / saved.NEXT).exists()
    assert left == ["none" if is_first else "old"] * 5 + ["new"] * 3
    assert not killed_at(99, tmp_path / "1", new)


def test_a_save_onto_a_full_disk_leaves_what_was_there(
    prior: AudioVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    prior.save_pretrained(tmp_path / "old")
    monkeypatch.setattr(Path, "write_bytes", full)
    for folder in (tmp_path / "new", tmp_path / "old"):
        with pytest.raises(
            PathError, match=r"cannot be written .*No space left on device.*; check the folder and the free space"
        ):
            build_prior(seed=1).save_pretrained(folder)
    assert list((tmp_path / "new").iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == [CARD, CONFIG, TENSORS]
    assert AudioVAE.from_pretrained(tmp_path / "old").model_hash() == prior.model_hash()


def test_a_model_below_a_file_is_refused(prior: AudioVAE, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PathError, match="cannot be written"):
        prior.save_pretrained(tmp_path / "file" / "model")


# Hash ----------------------------------------------------------------------------------------------------------------


def test_the_hash_is_that_of_the_fields_and_through_them_of_the_tensors(model_folder: Path, prior: AudioVAE) -> None:
    config = json.loads((model_folder / CONFIG).read_text())
    assert config["tensors_sha256"] == hashlib.sha256((model_folder / TENSORS).read_bytes()).hexdigest()
    assert config["config_sha256"] == digest(config)
    assert prior.model_hash() == config["config_sha256"]


def test_the_hash_is_the_same_each_time_and_after_loading(model_folder: Path, prior: AudioVAE) -> None:
    assert (
        prior.model_hash()
        == prior.model_hash()
        == build_prior().model_hash()
        == AudioVAE.from_pretrained(model_folder).model_hash()
    )
    assert build_prior().train().model_hash() == prior.model_hash()


def test_the_hash_changes_with_every_size_and_weight(prior: AudioVAE) -> None:
    others = [build_prior(seed=1), build_prior(latent_dim=9), build_prior(activation="relu")]
    others.append(AudioVAE(prior.stft, prior.vae, 8000))
    others.append(AudioVAE(STFT(1024, 128), prior.vae, RATE))
    others.append(AudioVAE(STFT(window="hann"), prior.vae, RATE))
    nudged = build_prior()
    with torch.no_grad():
        bias = nudged.vae.encoder[-1].bias
        bias[3] = torch.nextafter(bias[3], torch.tensor(1.0))
    others.append(nudged)
    hashes = [other.model_hash() for other in [prior, *others]]
    assert len(set(hashes)) == len(hashes)


def test_the_hash_of_every_shipped_model_is_that_of_its_file() -> None:
    for name in saved.shipped_names():
        assert AudioVAE.from_pretrained(name).model_hash() == read_config(saved.find(name))["config_sha256"]


def test_a_model_in_half_precision_is_a_file_of_half_the_size_and_the_same_model(tmp_path: Path) -> None:
    prior = build_prior()
    prior.save_pretrained(tmp_path / "single")
    prior.half().save_pretrained(tmp_path / "half")
    sizes = [(tmp_path / name / TENSORS).stat().st_size for name in ("single", "half")]
    assert 0.5 < sizes[1] / sizes[0] < 0.55
    again = AudioVAE.from_pretrained(tmp_path / "half")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert again.model_hash() == prior.model_hash() == read_config(tmp_path / "half")["config_sha256"]
    again.save_pretrained(tmp_path / "again")  # what is loaded, in single precision, is the same model
    assert AudioVAE.from_pretrained(tmp_path / "again").model_hash() == again.model_hash()


@pytest.mark.parametrize("place", [0, 3, 40, -1])
def test_a_changed_byte_of_a_model_in_half_precision_is_noticed(place: int, tmp_path: Path) -> None:
    build_prior().half().save_pretrained(tmp_path)
    content = bytearray((tmp_path / TENSORS).read_bytes())
    content[place] ^= 1
    (tmp_path / TENSORS).write_bytes(content)
    with pytest.raises(ModelError, match="is damaged"):
        AudioVAE.from_pretrained(tmp_path)


# Settings ------------------------------------------------------------------------------------------------------------

# What a user may choose of what every config states: all else follows from the class.
CHOICES = {
    "FrameVAE": {"latent", "dirichlet_concentration", "likelihood", "labels"},
    "ContextVAE": {"latent", "dirichlet_concentration", "likelihood", "labels"},
    "SequenceVAE": {"latent", "dirichlet_concentration", "likelihood", "labels"},
    "DynamicVAE": {"likelihood", "labels"},
    "LabelVAE": {"labels"},
    **{kind: {"likelihood"} for kind in ("Autoencoder", "RVAE", "DKF", "STORN", "VRNN", "SRNN", "DSAE")},
}
NEWER = {
    "data",
    "posterior_scale",
    "code_activation",
    "standard_prior",
    "network_input",
    "variance_floor",
    "zero_start",
    "n_values",
    "phase",
}  # not in a config that keeps their defaults: hashes stay
STATED = ["latent_dim", "latent", "dirichlet_concentration", "likelihood", "labels"]  # first, and in this order


@pytest.mark.parametrize("kind", MODEL_SETTINGS)
def test_settings_hold_what_a_model_takes_and_configs_state_the_rest_too(kind: str) -> None:
    settings = MODEL_SETTINGS[kind]()
    names = {field.name for field in dataclasses.fields(settings)}
    assert names & set(STATED) == CHOICES[kind] | {"latent_dim"}
    config = settings_to_config(settings)
    assert list(config)[:5] == STATED
    newer = NEWER | ({"causal"} if kind == "DynamicVAE" else set())
    assert config.keys() == (names | set(STATED)) - newer
    assert config["latent"] == ("point" if kind == "Autoencoder" else "gaussian")
    assert config["dirichlet_concentration"] == 0.5
    assert settings_from_config(kind, json.loads(json.dumps(config))) == settings
    assert settings_from_config(kind, {name: config[name] for name in names - newer}) == settings


def test_what_is_newer_than_a_config_stands_in_it_where_it_is_chosen() -> None:
    settings = FrameVAESettings(data="array", likelihood="bernoulli", posterior_scale="exp", hidden=())
    config = settings_to_config(settings)
    assert {name: config[name] for name in NEWER & config.keys()} == {"data": "array", "posterior_scale": "exp"}
    assert settings_from_config("FrameVAE", json.loads(json.dumps(config))) == settings


REFUSED_SETTINGS = [
    ("RVAE", {"latent": "dirichlet"}, "latent is always 'gaussian' in a model of type RVAE, got 'dirichlet'"),
    (
        "DynamicVAE",
        {"dirichlet_concentration": 0.7},
        "dirichlet_concentration is always 0.5 in a model of type DynamicVAE, got 0.7",
    ),
    ("DKF", {"labels": {"digit": ["0", "1"]}}, "labels is always {} in a model of type DKF"),
    ("LabelVAE", {"likelihood": "bernoulli"}, "likelihood is always 'complex-gaussian' in a model of type LabelVAE"),
    ("Autoencoder", {"latent": "gaussian"}, "latent is always 'point' in a model of type Autoencoder"),
    ("FrameVAE", {"depth": 3, "colour": 1}, "a model of type FrameVAE has no setting colour, depth"),
    ("FlowVAE", {}, "the type of the model must be one of FrameVAE, .*, got 'FlowVAE'"),
]


@pytest.mark.parametrize(("kind", "changes", "message"), REFUSED_SETTINGS)
def test_a_saved_choice_that_a_class_does_not_give_is_refused_with_the_reason(
    kind: str, changes: dict[str, Any], message: str, model_folder: Path
) -> None:
    settings = settings_to_config(MODEL_SETTINGS.get(kind, FrameVAESettings)())
    rewrite(model_folder, vae={"type": kind, "settings": {**settings, **changes}})
    with pytest.raises(ModelError, match=rf"does not describe a model that this version can build \({message}"):
        AudioVAE.from_pretrained(model_folder)


# Damage --------------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_the_tensors_is_refused(model_folder: Path) -> None:
    whole = (model_folder / TENSORS).read_bytes()
    generator = np.random.default_rng(0)
    for place in [0, 8, len(whole) - 1, *generator.integers(0, len(whole), 20)]:
        content = bytearray(whole)
        content[place] ^= 1 << int(generator.integers(8))
        (model_folder / TENSORS).write_bytes(content)
        with pytest.raises(
            ModelError, match=r"model\.safetensors: is damaged: its SHA-256 is not the one in config\.json"
        ):
            AudioVAE.from_pretrained(model_folder)


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_truncated_tensors_are_refused(kept: int, model_folder: Path) -> None:
    (model_folder / TENSORS).write_bytes((model_folder / TENSORS).read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"model\.safetensors: is damaged"):
        AudioVAE.from_pretrained(model_folder)


def test_a_flipped_bit_anywhere_in_the_config_is_refused(model_folder: Path) -> None:
    whole = (model_folder / CONFIG).read_bytes()
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        (model_folder / CONFIG).write_bytes(content)
        with pytest.raises(ModelError, match=r"config\.json: (is damaged|was saved by a newer audiovae)"):
            read_config(model_folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"1", b"{}", b'"text"', b"\xff\xfe", b'{"format_version": 1}']
)
def test_a_config_that_is_none_is_refused(content: bytes, model_folder: Path) -> None:
    (model_folder / CONFIG).write_bytes(content)
    with pytest.raises(
        ModelError, match=r"config\.json: is damaged or not from audiovae; copy or train the model again"
    ):
        AudioVAE.from_pretrained(model_folder)


@pytest.mark.parametrize("version", ["1", None, [1], {}])
def test_a_version_that_is_no_number_is_refused(version: object, model_folder: Path) -> None:
    rewrite(model_folder, format_version=version)
    with pytest.raises(ModelError, match=r"config\.json: is damaged"):
        AudioVAE.from_pretrained(model_folder)


def test_a_newer_format_is_refused_before_anything_else(model_folder: Path) -> None:
    """Whatever else that version wrote."""
    (model_folder / TENSORS).unlink()
    rewrite(model_folder, format_version=saved.FORMAT_VERSION + 1, surprise=True)
    known = saved.FORMAT_VERSION
    message = rf"was saved by a newer audiovae \(format {known + 1}, this one reads up to {known}\); update audiovae"
    with pytest.raises(ModelError, match=message):
        AudioVAE.from_pretrained(model_folder)


MISFITS: dict[str, dict[str, Any]] = {
    "an unknown model": {"vae": {"type": "FlowVAE", "settings": {}}},
    "an unknown setting": {"vae": {"type": "FrameVAE", "settings": {"latent_dim": 8, "hidden": [32], "depth": 3}}},
    "other sizes": {"vae": {"type": "FrameVAE", "settings": {"latent_dim": 9, "hidden": [32]}}},
    "a size of none": {"vae": {"type": "FrameVAE", "settings": {"latent_dim": 0, "hidden": [32]}}},
    "another transform": {"stft": {"n_fft": 512, "hop_length": 128, "window": "sine"}},
    "a hop that has no inverse": {"stft": {"n_fft": 1024, "hop_length": 1000, "window": "sine"}},
    "a rate of zero": {"sample_rate": 0},
    "no model": {"vae": None},
    "no transform": {"stft": None},
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", MISFITS)
def test_a_config_that_describes_no_model_is_refused(name: str, model_folder: Path) -> None:
    """Signed rightly, but not what this version can build."""
    rewrite(model_folder, **MISFITS[name])
    with pytest.raises(ModelError, match=r"config\.json: does not describe a model that this version can build"):
        AudioVAE.from_pretrained(model_folder)


def test_a_refusal_is_one_line(model_folder: Path) -> None:
    """Also where the library below words it in many."""
    rewrite(model_folder, **MISFITS["other sizes"])
    with pytest.raises(ModelError) as caught:
        AudioVAE.from_pretrained(model_folder)
    assert "\n" not in str(caught.value)


def test_tensors_that_miss_one_of_the_model_are_refused(model_folder: Path) -> None:
    tensors = safetensors.torch.load_file(model_folder / TENSORS)
    tensors.pop(sorted(tensors)[0])
    safetensors.torch.save_file(tensors, model_folder / TENSORS)
    rewrite(model_folder, tensors_sha256=hashlib.sha256((model_folder / TENSORS).read_bytes()).hexdigest())
    with pytest.raises(ModelError, match="does not describe a model that this version can build"):
        AudioVAE.from_pretrained(model_folder)


def test_a_pickle_is_not_opened(model_folder: Path, tmp_path: Path) -> None:
    """Even if it is signed."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "exploded",)

    torch.save({"x": Bomb()}, model_folder / TENSORS)
    rewrite(model_folder, tensors_sha256=hashlib.sha256((model_folder / TENSORS).read_bytes()).hexdigest())
    with pytest.raises(ModelError):
        AudioVAE.from_pretrained(model_folder)
    assert not (tmp_path / "exploded").exists()


def test_missing_tensors_are_refused(model_folder: Path) -> None:
    (model_folder / TENSORS).unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: is missing; copy the whole model folder"):
        AudioVAE.from_pretrained(model_folder)


def test_a_missing_config_is_refused(model_folder: Path) -> None:
    (model_folder / CONFIG).unlink()
    with pytest.raises(ModelError, match=r"model: is not a model folder: it has no config\.json"):
        AudioVAE.from_pretrained(model_folder)
    with pytest.raises(ModelError, match=r"config\.json: is missing; copy the whole model folder"):
        read_config(model_folder)


# Names ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shipped(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that ships two models, speech-16k and music-44k."""
    package = tmp_path / "package"
    for name in ("speech-16k", "music-44k"):
        shutil.copytree(model_folder, package / "pretrained" / name)
    (package / "pretrained" / "notes").mkdir()
    monkeypatch.setattr(saved.resources, "files", lambda _: package)
    return package


@pytest.mark.usefixtures("shipped")
def test_a_shipped_model_is_found_by_name() -> None:
    assert saved.shipped_names() == ["music-44k", "speech-16k"]
    assert AudioVAE.from_pretrained("speech-16k").sample_rate == RATE
    assert AudioVAE.from_pretrained().sample_rate == RATE


HINTS = [
    ("speech-16", r"did you mean 'speech-16k'\?"),
    ("muzic-44k", r"did you mean 'music-44k'\?"),
    ("xyz", "give a model folder or one of: music-44k, speech-16k"),
]


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize(("name", "hint"), HINTS)
def test_an_unknown_name_suggests_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ModelError, match=f"{name}: no such model; {hint}"):
        AudioVAE.from_pretrained(name)


@pytest.mark.usefixtures("shipped")
def test_a_model_folder_goes_before_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_prior(seed=1).save_pretrained(tmp_path / "here" / "speech-16k")
    monkeypatch.chdir(tmp_path / "here")
    assert AudioVAE.from_pretrained("speech-16k").model_hash() == build_prior(seed=1).model_hash()


def test_every_shipped_model_loads() -> None:
    for name in saved.shipped_names():
        folder = saved.find(name)
        assert sum(path.stat().st_size for path in folder.iterdir()) < 25e6
        assert torch.isfinite(AudioVAE.from_pretrained(name).resynthesize(torch.ones(2000))).all()


@pytest.mark.parametrize("name", ["no/such/folder", "/no/such/folder", "/none"])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match=f"{name}: no such model"):
        AudioVAE.from_pretrained(name)


# Configs that nothing wrote -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *[(("sample_rate",), value) for value in (0, -1, 1.5, 2**20 + 1, 10**12, 2**70, "16000", None, True)],
        *[(("vae", "settings", "latent_dim"), value) for value in (10**9, 10**30)],
        *[(("vae", "settings", "hidden"), value) for value in ([10**9], [10**6, 10**6])],
        *[(("stft", "n_fft"), value) for value in (10**9, 10**30, 0, "x", None)],
    ],
)
def test_a_size_that_nothing_has_is_refused_before_it_is_allocated(
    model_folder: Path, path: tuple[str, ...], value: Any
) -> None:
    config = json.loads((model_folder / CONFIG).read_text())
    place = config
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    config["config_sha256"] = digest(config)
    (model_folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ModelError, match="does not describe a model that this version can build"):
        AudioVAE.from_pretrained(model_folder)


def test_a_config_nested_without_end_is_refused(model_folder: Path) -> None:
    (model_folder / CONFIG).write_text("[" * 200_000)
    with pytest.raises(ModelError, match=r"config\.json: is damaged or not from audiovae"):
        AudioVAE.from_pretrained(model_folder)
