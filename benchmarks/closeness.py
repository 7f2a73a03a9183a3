"""How near tiles and buckets come to pictures restored whole, on pairs of real pictures.

python benchmarks/closeness.py --checkpoint RUN --data DIR [--json closeness.json]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path

import numpy as np

from drsformer_jax import weights
from drsformer_jax.buckets import bucket_on_ladder, padded
from drsformer_jax.data.folders import find_pairs, read_pair
from drsformer_jax.files import write_text
from drsformer_jax.metrics import psnr
from drsformer_jax.restore import Restorer

TILES = ((96, 0), (96, 32), (128, 32), (192, 64), (256, 64))
PROTOCOL = "rain200_spa"


def main() -> None:
    """Prints PSNR to the whole picture's result, and what it changes in PSNR to the clean one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="any network")
    parser.add_argument("--data", type=Path, required=True, help="folder of input/ and target/")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    network = weights.load(arguments.checkpoint)
    pairs = [read_pair(rainy, clean) for _, rainy, clean in find_pairs(arguments.data)]
    exact = Restorer(*network, tile=0)
    exact.plan(rainy.shape[:2] for rainy, _ in pairs)
    whole = [exact(rainy) for rainy, _ in pairs]
    print(f"{len(pairs)} pictures, luma PSNR in dB by {PROTOCOL}; compared with whole pictures")
    print(f"{'way':24} {'mean':>8} {'worst':>8} {'equal':>6} {'change to the clean picture':>28}")
    ways = {"buckets of the ladder": Restorer(*network, tile=0)}
    ways |= {
        f"tiles {side}, overlap {overlap}": Restorer(*network, tile=side, overlap=overlap)
        for side, overlap in TILES
    }
    rows = []
    for name, restorer in ways.items():
        found = [restorer(rainy) for rainy, _ in pairs]
        near = [psnr(*both, PROTOCOL) for both in zip(found, whole, strict=True)]
        change = [
            psnr(ours, clean, PROTOCOL) - psnr(theirs, clean, PROTOCOL)
            for ours, theirs, (_, clean) in zip(found, whole, pairs, strict=True)
        ]
        finite = [value for value in near if math.isfinite(value)]
        row = {
            "way": name,
            "mean": statistics.mean(finite) if finite else None,
            "worst": min(finite, default=None),
            "equal": len(near) - len(finite),
            "change": statistics.mean(change),
        }
        rows.append(row)
        figures = [f"{row[key]:8.2f}" if finite else f"{'-':>8}" for key in ("mean", "worst")]
        print(f"{name:24} {' '.join(figures)} {row['equal']:6} {row['change']:+28.4f}", flush=True)
    added = [
        np.prod(bucket_on_ladder(size)) / np.prod(padded(size)) - 1
        for size in (rainy.shape[:2] for rainy, _ in pairs)
    ]
    print(f"buckets of the ladder add {statistics.mean(added):.0%} to the pixels")
    if arguments.json:
        write_text(arguments.json, json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
