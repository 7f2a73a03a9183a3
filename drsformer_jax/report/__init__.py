"""The page of a finished run: curves, scores, images of the largest and smallest gain, settings.

`write_results` writes all that a run leaves in its folder; `write_report` writes the page alone.
"""

from drsformer_jax.report.page import Example, write_report
from drsformer_jax.report.results import Kept, sheet, write_results

__all__ = ["Example", "Kept", "sheet", "write_report", "write_results"]
