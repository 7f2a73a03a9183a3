"""`tiny` on Rain100L, on a CPU.

    drsformer build-data rain100l --manual-dir Rain100L
    python train.py --config configs/rain100l_small.py

With `--data.train DIR --data.validation DIR` the pairs are read from folders that hold `input/` and
`target/` with equal file names. On 40 pairs and 2 cores of an AMD EPYC that other work kept busy:
666 s once and 1050 s once, and 5.63 dB gained on 16 test pairs, 31.52 dB and SSIM 0.9317.
"""

from drsformer_jax.config import PRESETS, DataConfig, OptimConfig, TrainConfig

STEPS = 1800


def get_config() -> TrainConfig:
    """Returns the configuration."""
    return TrainConfig(
        model=PRESETS["tiny"],
        data=DataConfig(
            train="rain100l",
            validation="rain100l",
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
