"""How good a network is, and what it costs: scores of pairs, published results, parameters, MACs.

`score` and `evaluate` give PSNR and SSIM by the protocols of published results, `published` holds
those results, `tables` lays scores out, `complexity` counts parameters and MACs.
"""

from drsformer_jax.scoring.complexity import macs, parameters
from drsformer_jax.scoring.evaluation import Scores, evaluate, mean, score

__all__ = ["Scores", "evaluate", "macs", "mean", "parameters", "score"]
