"""Restormer, the baseline, on Rain13K: patches that grow from 128 to 384 pixels.

    drsformer build-data rain13k --manual-dir Rain13K
    python train.py --config configs/restormer_rain13k.py

For 8 GPUs ("Restormer", CVPR 2022, Sec. 4). Fewer devices make the same steps by accumulating
gradients: `--mesh.device-batch 1` computes a patch of 384 pixels at once, or as many pixels of
smaller ones. With `--model.dtype bfloat16` a chip of eight H100 needs 2.0 GiB, and the recipe
8 hours: projected by `drsformer plan` at half of its bound, not measured; the hours are without
evaluations.
Expected on Test100: 32.00 dB, SSIM 0.923 (published, Table 1 of Restormer's paper; not measured
here). Scored on it while it trains; `eval.py --data rain13k:test1200 --dataset Test1200` scores on
another of the five test sets, whose published figures are in Restormer's paper.
"""

from dataclasses import replace

from drsformer_jax.config import PRESETS, RESTORMER_PATCHES, DataConfig, TrainConfig


def get_config() -> TrainConfig:
    """Returns the configuration."""
    return TrainConfig(
        model=replace(PRESETS["restormer"], remat=True),
        data=DataConfig(
            train="rain13k",
            validation="rain13k:test100",
            crop_size=384,
            progressive=RESTORMER_PATCHES,
        ),
        protocol="rain200_spa",
    )
