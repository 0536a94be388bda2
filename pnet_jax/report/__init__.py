"""HTML reports: one page for each scan, and a report of the cohort."""

from pnet_jax.report.extra import ReportExtraMissingError, check_installed
from pnet_jax.report.folder import report_folder
from pnet_jax.report.index import write_index
from pnet_jax.report.page import write_report

__all__ = ["ReportExtraMissingError", "check_installed", "report_folder", "write_index", "write_report"]
