"""Synthetic rain, sampled at random and rendered on photographs: pairs without a dataset."""

from drsformer_jax.data.synthetic.pairs import SyntheticRain
from drsformer_jax.data.synthetic.photographs import PHOTOGRAPHS, Photograph, photographs
from drsformer_jax.data.synthetic.scene import add_rain

__all__ = [
    "PHOTOGRAPHS",
    "Photograph",
    "SyntheticRain",
    "add_rain",
    "photographs",
]
