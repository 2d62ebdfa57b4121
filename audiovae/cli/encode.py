"""audiovae encode F... -o OUT."""

from __future__ import annotations

from typing import Any

import jsonargparse

from audiovae.cli import arguments
from audiovae.cli.arguments import Item
from audiovae.cli.streams import standard_streams
from audiovae.errors import PathError


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    arguments.add_inputs(parser)
    arguments.add_output(parser)
    arguments.add_resume(parser)
    arguments.add_labels(parser)
    arguments.add_common(parser, "model", "device", "jobs")


@standard_streams(".npz")
def run(options: Any) -> int:
    from audiovae.cli.batch import run_batch

    items = arguments.with_targets(arguments.find_inputs(options.inputs), options.output, ".npz")
    if options.resume and arguments.kept_rows(options) is None:
        _check_same_model(items, options)
    rows, status = run_batch(items, encode, options)
    tell(rows, options)
    return status


def _check_same_model(items: list[Item], options: Any) -> None:
    """Raises PathError where an output that is to stay is of another model."""
    from audiovae import saved
    from audiovae.files import encoded_by

    expected = saved.read_config(saved.find(options.model))["config_sha256"]
    for item in items:
        if item.target is not None and item.target.exists() and encoded_by(item.target) != expected:
            raise PathError(item.target, "was encoded by another model; give the same, --overwrite or another output")


def tell(rows: list[dict[str, Any]], options: Any) -> None:
    from audiovae.cli.batch import print_json

    arguments.report_rows(rows, options.quiet)
    if options.json:
        print_json(rows)


def encode(prior: Any, item: Item, options: Any) -> dict[str, Any]:
    from audiovae.files import write_latents

    assert item.target is not None
    recording, n_frames = write_latents(prior, item.source, item.target, arguments.condition(prior, options))
    return {
        "output": str(item.target),
        "seconds": recording.info.seconds,
        "channels": recording.info.n_channels,
        "frames": n_frames,
        "latent_dim": prior.vae.latent_dim,
        "level": recording.level,
        **arguments.resampling(recording.info.sample_rate, prior.sample_rate),
    }
