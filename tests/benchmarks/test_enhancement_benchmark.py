"""The benchmark and the recipes of enhancement: references by their formulas, tables with every row, and runs that
continue.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import build_prior, load_script, speech_like

from audiovae import STFT
from audiovae.metrics import Score, si_sdr

ROOT, RATE = Path(__file__).resolve().parents[2], 16000
REFERENCES = (
    "noisy",
    "oracle Wiener filter",
    "NMF without a prior",
    "log-MMSE",
    "spectral gating",
    "spectral subtraction",
)


benchmark = load_script(ROOT / "benchmarks/enhancement.py")
Call = Callable[..., str]


def noisy_speech(seed: int) -> tuple[np.ndarray, np.ndarray]:
    clean = speech_like(1.2, 120 + 40 * seed, seed)
    return clean, clean + (0.03 * np.random.default_rng(seed).standard_normal(len(clean))).astype(np.float32)


@pytest.fixture
def pair() -> object:
    return benchmark.Pair("0.wav", *noisy_speech(0))


@pytest.fixture
def call(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """The program on two pairs with a tiny prior; gives what it wrote."""
    for i in range(2):
        for side, wave in zip(("clean", "noisy"), noisy_speech(i), strict=True):
            (tmp_path / side).mkdir(exist_ok=True)
            soundfile.write(tmp_path / side / f"{i}.wav", wave, RATE, "FLOAT")
    monkeypatch.setattr(benchmark, "NMF_ITERATIONS", 2)
    quick = Score({"pesq": 2.0, "estoi": 0.5, "dnsmos": 3.0})
    monkeypatch.setattr(
        benchmark,
        "compare",
        lambda clean, wave, rate: Score({"si_sdr": si_sdr(clean[0], wave[0]), **quick.values}, {"pesq": "quick"}),
    )

    def run(*options: str, table: str = "enhancement.md") -> str:
        chosen = ["--priors", str(model_folder), "--methods", "peem", "fast", "--out", str(tmp_path / "out"), *options]
        monkeypatch.setattr(sys, "argv", ["enhancement.py", str(tmp_path / "clean"), str(tmp_path / "noisy"), *chosen])
        benchmark.main()
        return (tmp_path / "out" / table).read_text()

    return run


def test_the_oracle_is_the_wiener_filter_of_the_true_powers(pair: object) -> None:
    window = np.sin(np.pi * (np.arange(1024) + 0.5) / 1024)

    def frames(wave: np.ndarray) -> np.ndarray:
        padded = np.pad(wave.astype(np.float64), 512)
        return np.stack([np.fft.rfft(window * padded[i : i + 1024]) for i in range(0, len(padded) - 1023, 256)])

    clean, noisy = frames(pair.clean), frames(pair.noisy)
    noise = frames(pair.noisy - pair.clean)
    gain = np.zeros(clean.shape)
    for t, f in np.ndindex(clean.shape):
        if abs(clean[t, f]) > 0:
            gain[t, f] = abs(clean[t, f]) ** 2 / (abs(clean[t, f]) ** 2 + abs(noise[t, f]) ** 2)
    expected, weight = np.zeros(256 * len(gain) + 1024), np.zeros(256 * len(gain) + 1024)
    for t, frame in enumerate(np.fft.irfft(gain * noisy)):
        expected[256 * t :][:1024] += window * frame
        weight[256 * t :][:1024] += window**2
    expected = (expected / np.maximum(weight, 1e-9))[512:][: len(pair.clean)]
    np.testing.assert_allclose(benchmark.oracle_wiener(STFT(), pair).wave, expected, atol=1e-5)


def test_the_references_give_waves_and_none_is_better_than_the_oracle(pair: object) -> None:
    outputs = {}
    for name, make in benchmark.references().items():
        try:
            enhanced = make()(pair)
        except ImportError:
            continue
        assert enhanced.wave.shape == pair.noisy.shape
        assert enhanced.wave.dtype == np.float32
        assert (enhanced.inference is not None) == (name in ("oracle Wiener filter", "NMF without a prior"))
        outputs[name] = si_sdr(pair.clean, enhanced.wave)
    assert max(outputs, key=outputs.__getitem__) == "oracle Wiener filter"
    assert outputs["NMF without a prior"] > outputs["noisy"] + 1


def test_the_table_has_every_row_and_a_second_run_computes_none_again(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = call()
    assert "2 pairs, 1 thread" in table
    for name in (*REFERENCES, "peem, model", "fast, model"):
        assert f"\n| {name} |" in table or f"\n* {name}: No module named" in table
    assert (tmp_path / "out" / "enhancement.png").read_bytes()[:4] == b"\x89PNG"
    rows = json.loads((tmp_path / "out" / "enhancement.json").read_text())["rows"]
    for file in rows["peem, model"]["files"]:
        assert 0 < file["inference"] < file["seconds"]
        assert file["duration"] == pytest.approx(1.2)

    def again(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(benchmark, "scores", again)
    assert call() == table
    with pytest.raises(AssertionError, match="computed again"):
        call("--overwrite")
    soundfile.write(tmp_path / "noisy" / "1.wav", noisy_speech(3)[1], RATE, "FLOAT")
    with pytest.raises(SystemExit, match="other recordings"):
        call()


def test_a_prior_that_cannot_be_used_is_left_out_with_the_reason(call: Call, tmp_path: Path) -> None:
    build_prior(likelihood="bernoulli").save_pretrained(tmp_path / "odd")
    table = call("--methods", "fast", "--priors", str(tmp_path / "odd"))
    assert "\n* fast, odd: the likelihood 'bernoulli' is no density of the STFT" in table
    assert "\n| fast, odd |" not in table


def test_the_curve_has_a_column_for_every_level(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "LEVELS_DB", [0, 5, 10, math.inf])
    table = call("--curve", "--methods", "fast", table="curve.md").splitlines()
    assert table[2] == "|  | 0 | 5 | 10 | clean | rise of the mean | rise of one recording |"
    names = [line.split(" | ")[0].removeprefix("| ") for line in table[4:] if line.startswith("|")]
    assert names[:2] == ["oracle Wiener filter", "NMF without a prior"]
    assert names[-1] == "fast, model"
    oracle = [float(value) for value in table[4].split(" | ")[1:5]]
    assert oracle == sorted(oracle)


@pytest.mark.parametrize("level", [-5, 20, 40])
def test_the_level_of_a_mixture_is_its_si_sdr(pair: object, level: float) -> None:
    assert si_sdr(pair.clean, benchmark.at_level(pair, level).noisy) == pytest.approx(level, abs=1e-3)
    np.testing.assert_array_equal(benchmark.at_level(pair, math.inf).noisy, pair.clean)


def test_pairs_must_belong_together(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clean.wav", np.ones(800), RATE)
    soundfile.write(tmp_path / "noisy.wav", np.ones(900), RATE)
    with pytest.raises(SystemExit, match="the same length"):
        benchmark.read_pairs(tmp_path / "clean.wav", tmp_path / "noisy.wav")


def test_the_test_set_of_voicebank_is_resampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    voicebank = load_script(ROOT / "recipes/enhancement/voicebank.py")
    for side in ("clean", "noisy"):
        (tmp_path / f"{side}_testset_wav").mkdir()
        for name in ("p232_001.wav", "p257_001.wav"):
            soundfile.write(tmp_path / f"{side}_testset_wav" / name, speech_like(0.5, 120, rate=48000), 48000)
    monkeypatch.setattr(sys, "argv", ["voicebank.py", str(tmp_path), str(tmp_path / "out")])
    voicebank.main()
    assert "2 pairs of p232, p257: not the published test set" in capsys.readouterr().out
    for side in ("clean", "noisy"):
        info = soundfile.info(tmp_path / "out" / f"{side}_testset_wav_16k" / "p257_001.wav")
        assert (info.samplerate, info.frames, info.subtype) == (16000, 8000, "FLOAT")
    (tmp_path / "noisy_testset_wav" / "p257_001.wav").unlink()
    with pytest.raises(SystemExit, match="2 clean and 1 noisy test files, 1 without a partner"):
        voicebank.main()
