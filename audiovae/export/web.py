"""A prior as a static page, which denoises and resynthesises in the browser of whoever opens it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from importlib import resources
from pathlib import Path

from audiovae.errors import AudiovaeError, PathError
from audiovae.export.onnx import RESYNTHESIS, STREAM_STEP, Exported, assembled, graphs_of, require, write
from audiovae.prior import AudioVAE

PACKAGE, VERSION = "onnxruntime-web", "1.23.2"
_RUNTIME = {  # SHA-256 of what the page needs of the package
    "ort.wasm.min.js": "c6bc9f8e1d0ecc3983a57910e6a30b2230a512bcd2e0207cd64306459c3de7b4",
    "ort-wasm-simd-threaded.mjs": "90a557d15c02bac4504d95b67f431d8594635ed2a0a62a7f2cd83d090ff91d3e",
    "ort-wasm-simd-threaded.wasm": "45eaee27761ad883742a8d4b8fce1538d60ce43b51adf1726fafccc59b8c1a15",
}
_SECONDS_OF_NPM = 300.0


def export_page(
    prior: AudioVAE,
    folder: str | Path,
    int8: bool = False,
    name: str = "",
    licence: str = "",
    runtime: str | Path | None = None,
) -> Exported:
    """Write a page, its model and the runtime into a folder, which any server of files serves.

    Args:
        int8, name, licence: see `export`.
        runtime: folder of the package onnxruntime-web; default: npm brings it.

    Raises:
        AudiovaeError: a library or npm is missing, or the model has no graph, or labels.
        PathError: the folder cannot be written, or that of the runtime holds another version.
    """
    require()
    if prior.vae.conditions.labels:
        raise AudiovaeError(
            f"--web: the page asks for no labels, and this model {prior.vae.conditions}; leave --web out"
        )
    graphs, left_out = graphs_of(prior)
    with assembled(folder) as place:
        (place / "runtime").mkdir()
        _bring_runtime(place / "runtime", None if runtime is None else Path(runtime))
        for part in resources.files("audiovae.export").joinpath("page").iterdir():
            (place / part.name).write_bytes(part.read_bytes())
        (place / "model").mkdir()
        needed = [graph for graph in graphs if graph.name in (STREAM_STEP, RESYNTHESIS)]
        write(prior, needed, place / "model", int8, {"name": name, "licence": licence})
        files = [path for path in sorted(place.rglob("*")) if path.is_file()]
        sizes = {path.relative_to(place).as_posix(): path.stat().st_size for path in files}
    return Exported(sizes, left_out)


def _bring_runtime(target: Path, package: Path | None) -> None:
    with tempfile.TemporaryDirectory() as fetched:
        source = _fetch(Path(fetched)) if package is None else package / "dist"
        for name, digest in _RUNTIME.items():
            try:
                content = (source / name).read_bytes()
            except OSError as error:
                raise PathError(source / name, f"is missing; give the folder of {PACKAGE} {VERSION}") from error
            if hashlib.sha256(content).hexdigest() != digest:
                raise PathError(source / name, f"is not that of {PACKAGE} {VERSION}: its SHA-256 is another")
            (target / name).write_bytes(content)


def _fetch(folder: Path) -> Path:
    """The package by npm, unpacked."""
    remedy = f"or give the folder of {PACKAGE} {VERSION} with --runtime"
    npm = shutil.which("npm")
    if npm is None:
        raise AudiovaeError(f"--web needs npm, which brings the browser's runtime; install Node.js, {remedy}")
    try:
        done = subprocess.run(
            [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts"],
            cwd=folder, capture_output=True, text=True, errors="replace", timeout=_SECONDS_OF_NPM, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise AudiovaeError(
            f"--web: npm did not answer for {_SECONDS_OF_NPM:.0f} s; check the network, {remedy}"
        ) from None
    archives = list(folder.glob("*.tgz"))
    if done.returncode or not archives:
        said = (
            next((line for line in done.stderr.splitlines() if "code" in line), "npm failed").split("code")[-1].strip()
        )
        raise AudiovaeError(f"--web: npm does not bring {PACKAGE} {VERSION} ({said[:80]}); check the network, {remedy}")
    with tarfile.open(archives[0]) as archive:
        for name in _RUNTIME:
            content = archive.extractfile(f"package/dist/{name}")
            if content is not None:
                (folder / name).write_bytes(content.read())
    return folder
