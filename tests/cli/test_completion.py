"""What the tab key offers, asked of bash itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from audiovae import shipped_names
from audiovae.cli.main import VERBS, main

_ASK = """source {script}
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); _audiovae; echo "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "audiovae.bash"
    with pytest.MonkeyPatch.context() as patch, open(path, "w") as file:
        patch.setattr("sys.stdout", file)
        assert main(["completion", "bash"]) == 0
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("audiovae ''", {*VERBS, "completion"}),
        ("audiovae sep", {"separate"}),
        ("audiovae train packed --ini", {"--init"}),
        ("audiovae train packed --vae.own", {"--vae.own_past"}),  # of one type of model only
        ("audiovae train packed --type D", {"DynamicVAE", "DKF", "DSAE"}),
        ("audiovae enhance x.wav --noise ''", {"slow", "nmf", "stationary"}),
        ("audiovae score x.wav --model ''", set(shipped_names())),
        ("audiovae prepare folder --trim ''", {"true", "false"}),
        ("audiovae score ''", set()),  # files, by the shell
    ],
)
def test_bash_completes_verbs_options_and_values(script: Path, words: str, expected: set[str]) -> None:
    asked = ["bash", "-c", _ASK.format(script=script, words=words)]
    assert set(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()) == expected


def test_zsh_runs_the_same_script_after_its_own_beginning(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    heading, begin, *rest = capsys.readouterr().out.splitlines()
    assert "zsh >> ~/.zshrc" in heading
    assert begin == "autoload -U +X bashcompinit && bashcompinit"
    assert rest == script.read_text().splitlines()[1:]


@pytest.mark.parametrize("words", [[], ["fish"], ["bash", "zsh"]])
def test_another_shell_is_refused_in_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["completion", *words])
    assert left.value.code == 2
    assert "name a shell, bash or zsh" in capsys.readouterr().err
