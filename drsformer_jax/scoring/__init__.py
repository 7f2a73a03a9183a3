"""How good a network is, and what it costs: scores of pairs, published results, operations.

`score` and `evaluate` give PSNR and SSIM by the protocols of published results, `published` holds
those results, `complexity` counts parameters and multiply-accumulates.
"""

from drsformer_jax.scoring.complexity import multiply_accumulates, parameters
from drsformer_jax.scoring.evaluation import Scores, evaluate, mean, score

__all__ = ["Scores", "evaluate", "mean", "multiply_accumulates", "parameters", "score"]
