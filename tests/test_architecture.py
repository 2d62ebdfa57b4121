"""What holds for the code as a whole: who may import, print, exit and unpickle; and that recipes and README run."""

from __future__ import annotations

import ast
import graphlib
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from mixtures import bank_of

import audiovae
from audiovae.cli.main import VERBS, main
from audiovae.separation import NeuralSeparator
from audiovae.training import loop

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "audiovae"

# From the top to the ground. A module may import what stands on a lower floor, and what shares its own room.
FLOORS: list[tuple[str, ...]] = [
    ("__main__",),
    ("cli",),
    ("app", "notebook"),
    ("training",),
    ("evaluation",),
    ("report",),
    ("export",),
    ("separation",),
    ("files",),
    ("batch", "dvae"),
    ("prior", "array_vae"),
    ("trainable",),
    ("corpora",),
    ("objectives",),
    ("models",),
    ("networks",),
    ("distributions",),
    ("metrics", "saved", "phase"),
    ("stft", "waves"),
    ("audio",),
    ("shards",),
    ("containers", "level", "atomic", "quiet", "hub"),
    ("locks", "pool", "cluster"),
    ("settings", "errors"),
    ("__init__",),  # its names stand in a stub, and are loaded from everywhere when they are used
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}

MODULES = sorted(PACKAGE.rglob("*.py"))
MODULE_NAMES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES
}
IDS = [path.relative_to(PACKAGE).as_posix() for path in MODULES]


def room(path: Path) -> str:
    """The file or folder directly below the package that a module belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


STUB = PACKAGE / "__init__.pyi"
SILENT = [path for path in MODULES if room(path) not in ("cli", "__main__")]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a module imports, at its top or inside a function."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def module_of(name: str) -> str:
    """The module of the package that an imported name is, or stands in."""
    while name not in MODULE_NAMES:
        name = name.rpartition(".")[0]
    return name


def calls(path: Path) -> Iterator[tuple[int, str, ast.Call]]:
    """Line, dotted name and node of every call of a name."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func), node


def test_every_room_stands_on_a_floor() -> None:
    rooms = {room(path) for path in MODULES}
    assert rooms <= FLOOR.keys()
    assert "prior" in rooms


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_imports_point_down_only(path: Path) -> None:
    wrong = []
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] != "audiovae":
            continue
        other = "__init__" if name == "audiovae.__version__" else parts[1]
        assert other in FLOOR, f"{path}:{line}: imports {name}, which stands on no floor"
        if other != room(path) and FLOOR[other] < FLOOR[room(path)]:
            wrong.append(f"line {line} imports {name}, which stands above")
    assert wrong == []


def test_no_import_goes_in_a_circle() -> None:
    """Whether at the top of a module, in a function, or for the type checker alone."""
    graph = {
        name: {module_of(other) for _, other in imports(path) if other.split(".")[0] == "audiovae"} - {name}
        for name, path in MODULE_NAMES.items()
    }
    assert graph["audiovae.prior"] >= {"audiovae.trainable", "audiovae.models", "audiovae.stft"}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter({**graph, "audiovae.saved": {"audiovae.prior"}}).static_order())


@pytest.mark.parametrize("path", SILENT, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_the_command_line_prints_or_exits(path: Path) -> None:
    forbidden = {"print", "input", "exit", "quit", "sys.exit", "os._exit", "sys.stdout.write", "sys.stderr.write"}
    assert [(line, name) for line, name, _ in calls(path) if name in forbidden] == []
    assert not [
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Raise) and "SystemExit" in ast.unparse(node)
    ]


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_nothing_is_unpickled(path: Path) -> None:
    assert not {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"} & {
        name.split(".")[0] for _, name in imports(path)
    }
    for line, name, call in calls(path):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", f"line {line}"
        if name in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle", "False") == "False", f"line {line}"


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_no_exception_is_caught_without_a_name(path: Path) -> None:
    assert [
        node.lineno for node in ast.walk(tree(path)) if isinstance(node, ast.ExceptHandler) and node.type is None
    ] == []


def public_names() -> dict[str, str]:
    """Of every name in the stub of the package, the module that it comes from; "" for a module itself."""
    found = {}
    for node in ast.walk(tree(STUB)):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name, f"{alias.name}: type checkers see a name of a stub only as: x as x"
                found[alias.name] = node.module or ""
    return found


@pytest.mark.parametrize("name", public_names())
def test_a_public_name_is_what_type_checkers_see(name: str) -> None:
    module = public_names()[name]
    value = getattr(audiovae, name)
    if module:
        assert value is getattr(importlib.import_module(f"audiovae.{module}"), name)
    else:
        assert value is sys.modules[f"audiovae.{name}"]


def test_the_public_names_are_those_of_the_stub() -> None:
    assert len(public_names()) > 50
    assert public_names().keys() == set(audiovae.__all__)
    assert set(audiovae.__all__) == set(dir(audiovae))
    assert (PACKAGE / "py.typed").exists()


def test_a_room_of_the_package_is_loaded_where_it_is_first_used() -> None:
    program = "import audiovae; audiovae.separation.enhancer; audiovae.metrics.si_sdr; audiovae.files.Recording"
    assert subprocess.run([sys.executable, "-W", "error", "-c", program], check=False).returncode == 0


def test_recipes_import_public_names_alone() -> None:
    """And what prints a table, which the command line has."""
    public = {"audiovae", "audiovae.cli"} | {
        f"audiovae.{name}" for name, module in public_names().items() if not module
    }
    recipes = sorted((ROOT / "recipes").rglob("*.py"))
    assert len(recipes) > 3
    for path in recipes:
        for node in ast.walk(tree(path)):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module is not None and module.split(".")[0] == "audiovae":
                assert ".".join(module.split(".")[:2]) in public, f"{path.name}:{node.lineno}: imports from {module}"


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="No audiovae attribute Nonsense"):
        _ = audiovae.Nonsense


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import sys, audiovae; assert not {'torch', 'numpy', 'soundfile', 'jsonargparse'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# ---------------------------------------------------------------------------------------------------------------------
# The files of the repository


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a clone: no list of tracked files")
    return [ROOT / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]


def readable(paths: list[Path]) -> Iterator[tuple[Path, str]]:
    for path in paths:
        try:
            yield path, path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue


# The folders of one machine: never part of a project. Written so that this line does not match itself.
MACHINE_FOLDERS = re.compile(
    r"(?<![\w.~}<-])/(?:" + "|".join(["work", "tmp", "root", "home", "mnt", "Users", "var", "opt"]) + r")/\w"
)
INDEX_ADDRESSES = re.compile(
    "|".join(
        [
            r"--(?:extra-)?index-" + "url",
            r"--find-" + "links",
            r"--trusted-" + "host",
            r"\bfile:" + r"//\w",
            "local" + r"host[:/]",
        ]
    )
)


def test_no_tracked_file_names_a_folder_of_a_machine(tracked: list[Path]) -> None:
    found = [
        (path.name, match.group()) for path, content in readable(tracked) for match in MACHINE_FOLDERS.finditer(content)
    ]
    assert found == []
    assert MACHINE_FOLDERS.search("see " + "/".join(["", "home", "me"]))


def test_no_tracked_file_names_a_package_index(tracked: list[Path]) -> None:
    found = [
        (path.name, match.group()) for path, content in readable(tracked) for match in INDEX_ADDRESSES.finditer(content)
    ]
    assert found == []


EXAMPLES = PACKAGE / "app" / "examples"  # spoken and made noisy by recipes/app/examples.py


def test_no_tracked_file_is_a_recording_or_larger_than_25_megabytes(tracked: list[Path]) -> None:
    from audiovae.audio import SUFFIXES

    sounds = [path for path in tracked if path.suffix.lower() in SUFFIXES]
    assert [path.name for path in sounds if path.parent != EXAMPLES] == []
    assert sum(path.stat().st_size for path in sounds) < 200_000
    assert [path.name for path in tracked if path.exists() and path.stat().st_size > 25_000_000] == []


CONFIGURATIONS = sorted({*(ROOT / "recipes").rglob("*.yaml")} - {*(ROOT / "recipes/rooms").glob("*.yaml")})
CONFIGURATION_IDS = [path.relative_to(ROOT).as_posix() for path in CONFIGURATIONS]


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=CONFIGURATION_IDS)
def test_a_recipe_parses_with_the_values_that_it_states(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main(["train", "packed", "-o", "model", "--config", str(path), "--print_config"])
    output = capsys.readouterr()
    assert leave.value.code in (0, None), output.err
    printed, decided = yaml.safe_load(output.out), yaml.safe_load(path.read_text())
    assert decided
    for group, values in decided.items():
        assert (
            printed[group] if not isinstance(values, dict) else {name: printed[group][name] for name in values}
        ) == values


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=CONFIGURATION_IDS)
def test_a_recipe_trains_for_two_steps(
    path: Path, packed: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CALIBRATION_FRAMES", 500)
    monkeypatch.setattr(loop, "VALIDATION_FRAMES", 500)
    monkeypatch.setattr(loop, "MIXTURE_FRAMES", 64)
    config = yaml.safe_load(path.read_text())
    segment = config["training"].get("segment_frames", 16)
    shorter = [
        "--training.steps=2",
        f"--training.batch_frames={2 * segment}",
        f"--training.segment_frames={segment}",
        "--training.precision=32-true",
    ]
    corpus = digits if config.get("labels") else packed
    if "separator" in config:
        shorter += ["--rooms", str(bank_of(tmp_path / "rooms").folder)]
    assert main(["train", str(corpus), "-o", str(tmp_path / "model"), "--config", str(path), *shorter, "--quiet"]) == 0
    if "separator" in config:
        separator = NeuralSeparator.from_pretrained(tmp_path / "model")
        assert {name: getattr(separator.settings, name) for name in config["separator"]} == {
            name: tuple(value) if isinstance(value, list) else value for name, value in config["separator"].items()
        }
        return
    loaded = audiovae.AudioVAE.from_pretrained(tmp_path / "model")
    assert type(loaded.vae).__name__ == config.get("type", "FrameVAE")
    for name, value in config.get("vae", {}).items():
        assert getattr(loaded.vae.settings, name) == (tuple(value) if isinstance(value, list) else value)
    assert list(loaded.vae.conditions.labels) == config.get("labels", [])


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def test_the_tour_of_the_readme_runs(tmp_path: Path, tone_folder: Callable[..., Path]) -> None:
    blocks = python_blocks(ROOT / "README.md")
    if not blocks:
        pytest.skip("the README has no tour yet")
    tone_folder(tmp_path / "recordings", n_speakers=4)  # "any folder of sound files"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_commands_of_the_readme_exist() -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    verbs = re.findall(r"\baudiovae ([a-z]+)\b", " ".join(re.findall(r"^    .*|`[^`]+`", text, flags=re.MULTILINE)))
    if not verbs:
        pytest.skip("the README has no commands yet")
    assert set(verbs) <= {*VERBS, "help", "completion"}
    text += (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:audiovae|recipes|benchmarks|tests)/[\w./-]*)`", text))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    assert "PLACEHOLDER" not in text


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_shapes_are_of_plain_arrays(path: Path) -> None:
    """NDArray is no class since NumPy 2.5, and jaxtyping 0.3.11 takes nothing else: Float32[np.ndarray, ...] it is."""
    source = path.read_text()
    aliases = re.findall(r"^(\w+) = NDArray\[", source, re.MULTILINE)
    assert not re.search(rf"\w\[\s*({'|'.join(['NDArray', *aliases])})(\[[^\]]*\])?,\s*\"", source)
