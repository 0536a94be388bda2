"""Report of an estimator, with the interface of nilearn reports."""

from __future__ import annotations

import string
from pathlib import Path

from nilearn.reporting import HTMLReport

from pnet_jax.network import Network
from pnet_jax.outputs.atomic import write_text
from pnet_jax.report.page import render


class NetworkReport(HTMLReport):
    """HTML page of a network, displayed in notebooks or saved by `save_as_html(file)`.

    Args:
      network: Network to report on.

    Raises:
      ReportExtraMissingError: If matplotlib or jinja2 is not installed.
    """

    def __init__(self, network: Network):
        super().__init__(string.Template("$body"), render(network))

    def save_as_html(self, file_name: str | Path) -> None:
        """Write the page without the frame that nilearn adds."""
        write_text(Path(file_name), self.get_standalone())

    def _repr_html_(self) -> str:
        """Return the page in a frame, so that its styles do not affect the notebook."""
        return self.get_iframe(1000, 700)
