"""What a training step of neural FCA costs, speed and memory, and from these the published budget on many devices.

    OMP_NUM_THREADS=1 python benchmarks/neural.py [--n_fft 1024] [--n_channels 4] [--batch 4] [--steps 5]

Each row is a process of its own, one thread: CPU time of a step on chunks of four seconds (mixtures and starts are at
hand), as a multiple of real time, and the peak of the memory of the process. The last lines say how
long 4,400 hours of chunks (200 epochs of 20,000 mixtures of four seconds) take at such a speed on 1, 8 and 64 devices:
with gradients of a model this small exchanged once a step, devices divide the time but for that exchange.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

BUDGET_HOURS, CHUNK_SECONDS, RATE = 200 * 20_000 * 4 / 3600, 4.0, 16000
ALONE = {"start": "none", "encoder": "own", "train_prior": True}
ROWS = {
    "NeuralFastFCA, one stage of five updates": {"type": "NeuralFastFCA", "stages": 1, "updates": 5, **ALONE},
    "NeuralFastFCA, two stages of three": {"type": "NeuralFastFCA", **ALONE},
    "NeuralFCA, one stage of five updates": {"type": "NeuralFCA", "stages": 1, "updates": 5, **ALONE},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_fft", type=int, default=1024)
    parser.add_argument("--n_channels", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--row", choices=ROWS, help="one of them, in this process")
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measured(options)))
        return
    print("| separator | weights | x real time | peak memory (GB) |\n| --- | ---: | ---: | ---: |")
    speeds = []
    for name in ROWS:
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--row", name], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        row = json.loads(done.stdout.splitlines()[-1])
        speeds.append(row["speed"])
        print(f"| {name} | {row['weights']:,} | {row['speed']:.1f} | {row['gigabytes']:.2f} |", flush=True)
    for n in (1, 8, 64):
        hours = [BUDGET_HOURS / speed / n for speed in speeds]
        print(f"{BUDGET_HOURS:.0f} h of chunks on {n} such threads: " + ", ".join(f"{h:.1f} h" for h in hours))


def measured(options: argparse.Namespace) -> dict[str, float]:
    """Speed of a step, and what it takes."""
    import torch

    from audiovae import STFT, AudioVAE
    from audiovae.models import build
    from audiovae.objectives import Objective
    from audiovae.separation import build_separator
    from audiovae.settings import MODEL_SETTINGS, NeuralSettings
    from audiovae.training.memory import keep_freed_memory

    keep_freed_memory()  # as `fit` does
    torch.set_num_threads(1)
    torch.manual_seed(0)
    stft = STFT(options.n_fft, options.n_fft // 4)
    vae = build("FrameVAE", stft.n_freqs, MODEL_SETTINGS["FrameVAE"](hidden=(256, 256), latent_dim=32))
    model = build_separator(AudioVAE(stft, vae, RATE), NeuralSettings(**ROWS[options.row]))
    waves = torch.randn(options.batch, options.n_channels, round(CHUNK_SECONDS * RATE))
    observed = model.observe(waves)
    adam = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], fused=True)
    for step in range(options.steps + 1):
        if step == 1:
            began = time.process_time()
        adam.zero_grad()
        model.loss(observed, None, Objective())[0].backward()
        adam.step()
    seconds = (time.process_time() - began) / options.steps
    return {
        "speed": options.batch * CHUNK_SECONDS / seconds,
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "weights": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
    }


if __name__ == "__main__":
    main()
