"""`tiny` on a folder of Rain100L pairs, on a CPU.

    python train.py --config configs/rain100l_small.py --data.train DIR --data.validation DIR

The folders hold `input/` and `target/` with equal file names.
"""

from drsformer_jax.config import PRESETS, DataConfig, OptimConfig, TrainConfig

STEPS = 1800


def get_config() -> TrainConfig:
    """Returns the configuration."""
    return TrainConfig(
        model=PRESETS["tiny"],
        data=DataConfig(
            train="data/Rain100L/train",
            validation="data/Rain100L/test",
            crop_size=64,
            global_batch=4,
        ),
        optim=OptimConfig(
            learning_rate=3e-3,
            constant_steps=STEPS // 3,
            cosine_steps=STEPS - STEPS // 3,
            clip_norm=1.0,
        ),
        steps=STEPS,
        log_every=50,
        eval_every=900,
        checkpoint_every=450,
        protocol="rain200_spa",
    )
