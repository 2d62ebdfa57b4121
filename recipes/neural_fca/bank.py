"""A bank of impulse responses of simulated rooms, from which mixtures are drawn while a separator is trained.

    python recipes/neural_fca/bank.py OUT [--n_sets 2000] [any option of recipes/rooms/rooms.py]

Writes OUT/responses.npy, 16-bit floats `[set, source, microphone, sample]`, each set with its largest sample at 1, and
OUT/bank.json, what they were made with. A run that was stopped goes on where it was; set i depends on settings and i
alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import jsonargparse
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "rooms"))
from rooms import Mixture, RoomSettings, impulse_responses, place, write_text

SECONDS = 0.4  # of a response
RESPONSES, BANK, PART = "responses.npy", "bank.json", "responses.part"


def responses(settings: RoomSettings, i: int) -> np.ndarray:
    """Set i, `[source, microphone, sample]`: one room and array, and places of sources."""
    rng = np.random.default_rng([settings.seed, i])
    room = np.array([rng.uniform(*settings.length_m), rng.uniform(*settings.width_m), rng.uniform(*settings.height_m)])
    mics, sources, angle = place(settings, room, settings.n_sources, rng)
    drawn = Mixture(
        mixture="", speakers=[], recordings=[], starts_s=[], room_m=room.tolist(), rt60_s=rng.uniform(*settings.rt60_s),
        mics_m=mics.tolist(), sources_m=sources.tolist(), angle_deg=angle, levels_db=[], sensor_snr_db=0.0, noise=None,
        noise_snr_db=None,
    )  # fmt: skip
    out = np.zeros((settings.n_sources, settings.n_mics, round(SECONDS * settings.sample_rate)), np.float16)
    found = impulse_responses(drawn, settings.sample_rate)
    largest = max(np.abs(of_source).max() for of_source in found)
    for row, of_source in zip(out, found, strict=True):
        n = min(row.shape[1], of_source.shape[1])
        row[:, :n] = of_source[:, :n] / largest
    return out


def make(settings: RoomSettings, n_sets: int, out: Path) -> None:
    """Write what is missing of a bank.

    Raises:
        ValueError: the folder holds one of other settings.
    """
    of_sets = {name: value for name, value in dataclasses.asdict(settings).items() if name != "n_mixtures"}
    identity = json.dumps({"format_version": 1, "n_sets": n_sets, **of_sets}, indent=1) + "\n"
    if (out / BANK).exists() and (out / BANK).read_text() != identity:
        raise ValueError(f"{out} holds a bank of other settings; give another folder")
    write_text(out / BANK, identity)
    if (out / RESPONSES).exists():
        return
    shape = (n_sets, settings.n_sources, settings.n_mics, round(SECONDS * settings.sample_rate))
    size = int(np.prod(shape[1:])) * 2
    with open(out / PART, "ab") as file:
        done = file.tell() // size
        file.truncate(done * size)
        for i in range(done, n_sets):
            file.write(responses(settings, i).tobytes())
            if i % 100 == 99:
                file.flush()
                print(f"{i + 1} of {n_sets}", file=sys.stderr, flush=True)
    whole = np.memmap(out / PART, np.float16, "r", shape=shape)
    np.save(out / "whole.npy", whole)
    os.replace(out / "whole.npy", out / RESPONSES)
    (out / PART).unlink()


def main(arguments: list[str] | None = None) -> None:
    parser = jsonargparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("output", type=Path, help="folder of the bank")
    parser.add_argument("--n_sets", type=jsonargparse.typing.PositiveInt, default=2000, help="rooms")
    parser.add_class_arguments(RoomSettings, skip={"n_mixtures", "level_db", "sensor_snr_db", "noise_snr_db"})
    parser.set_defaults({"n_sources": 3, "angle_deg": [60.0, 180.0]})
    options = parser.parse_args(arguments)
    names = {field.name for field in dataclasses.fields(RoomSettings)}
    try:
        settings = RoomSettings(**{name: options[name] for name in names if name in options})
        make(settings, options.n_sets, options.output)
    except ValueError as error:
        sys.exit(f"bank.py: error: {error}")


if __name__ == "__main__":
    main()
