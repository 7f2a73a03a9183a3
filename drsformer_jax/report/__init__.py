"""The page of a finished run: curves, scores, the best and the worst images, the configuration.

`write_results` scores and draws what a run leaves in its folder; `write_report` writes the page.
"""

from drsformer_jax.report.page import Shown, write_report
from drsformer_jax.report.results import sheet, write_results

__all__ = ["Shown", "sheet", "write_report", "write_results"]
