"""The built-in network: `tiny` on synthetic rain alone, on a CPU; see docs/pretrained.md.

    python tools/gather_photographs.py photographs
    python train.py --config configs/pretrained.py --data.photographs photographs

The learning rate stays for a long time, so the average of the parameters can be used at any step,
and the training can go on.
"""

import dataclasses

from drsformer_jax.config import PRESETS, DataConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    """Returns the configuration."""
    return TrainConfig(
        model=dataclasses.replace(PRESETS["tiny"], unroll=True),
        data=DataConfig(
            train="synthetic",
            validation="synthetic",
            photographs="photographs",
            rains=5000,
            validation_rains=2,
            window=128,
            crop_size=128,
            progressive=((0, 64, 8), (20_000, 96, 6), (45_000, 128, 4)),
        ),
        optim=OptimConfig(
            learning_rate=1e-3,
            constant_steps=60_000,
            cosine_steps=20_000,
            warmup_steps=500,
            clip_norm=0.1,
            ema_decay=0.999,
        ),
        steps=80_000,
        log_every=100,
        eval_every=2000,
        checkpoint_every=250,
        protocol="rain200_spa",
    )
