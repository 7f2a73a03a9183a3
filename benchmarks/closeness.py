"""How near tiles, buckets and bfloat16 come to images restored whole in float32, on real pairs.

python benchmarks/closeness.py --checkpoint RUN --data DIR [--json closeness.json]
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
from pathlib import Path

import numpy as np
from timing import Table

from drsformer_jax import weights
from drsformer_jax.config.train import Protocol
from drsformer_jax.data.folders import find_pairs, read_pair
from drsformer_jax.errors import one_line_errors
from drsformer_jax.metrics import psnr
from drsformer_jax.restoring import Restorer
from drsformer_jax.restoring.buckets import bucket_on_ladder, padded

TILES = ((96, 0), (96, 32), (128, 32), (192, 64), (256, 64))
PROTOCOL: Protocol = "rain200_spa"


def main() -> None:
    """Prints PSNR to the whole image's result, and what it changes in PSNR to the clean one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="any network")
    parser.add_argument("--data", type=Path, required=True, help="folder of input/ and target/")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with one_line_errors():
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Restores all images by each variant."""
    config, params = weights.load(arguments.checkpoint)
    config = dataclasses.replace(config, dtype="float32")
    halved = dataclasses.replace(config, dtype="bfloat16")
    pairs = [read_pair(rainy, clean) for _, rainy, clean in find_pairs(arguments.data)]
    sizes = [rainy.shape[:2] for rainy, _ in pairs]
    variants = {
        "whole": Restorer(config, params, tile=0),
        "whole, bfloat16": Restorer(halved, params, tile=0),
        "default bucket sizes": Restorer(config, params, tile=0),
    }
    for variant in ("whole", "whole, bfloat16"):
        variants[variant].plan(sizes)
    variants |= {
        f"tiles {side}, overlap {overlap}": Restorer(config, params, tile=side, overlap=overlap)
        for side, overlap in TILES
    }
    whole = [variants["whole"](rainy) for rainy, _ in pairs]
    scores = [psnr(ours, clean, PROTOCOL) for ours, (_, clean) in zip(whole, pairs, strict=True)]
    table = Table(
        f"{len(pairs)} images, luma PSNR in dB by {PROTOCOL}: to the clean image and what that "
        "changes, and to the whole images' results (mean and worst of those that differ)",
        {
            "variant": "<24",
            "to_clean": "8.3f",
            "change": "+8.4f",
            "to_whole": "8.2f",
            "worst": "8.2f",
            "equal": "6d",
        },
    )
    for name, restorer in variants.items():
        found = [restorer(rainy) for rainy, _ in pairs]
        near = [psnr(*both, PROTOCOL) for both in zip(found, whole, strict=True)]
        to_clean = [
            psnr(ours, clean, PROTOCOL) for ours, (_, clean) in zip(found, pairs, strict=True)
        ]
        finite = [value for value in near if math.isfinite(value)]
        table.add(
            variant=name,
            to_clean=statistics.mean(to_clean),
            change=statistics.mean(to_clean) - statistics.mean(scores),
            to_whole=statistics.mean(finite) if finite else None,
            worst=min(finite, default=None),
            equal=len(near) - len(finite),
        )
    added = [np.prod(bucket_on_ladder(size)) / np.prod(padded(size)) - 1 for size in sizes]
    print(f"default bucket sizes add {statistics.mean(added):.0%} to the pixels")
    table.write(arguments.json)


if __name__ == "__main__":
    main()
