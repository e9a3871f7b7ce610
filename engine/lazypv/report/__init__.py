"""What a comparison looks like: a table for people, one JSON object for programs, an Arrow table of the timeline."""

from lazypv.report.json_report import as_json
from lazypv.report.picture import save_picture
from lazypv.report.sentence import sentence
from lazypv.report.table import print_table
from lazypv.report.timeline import save_timeline
from lazypv.scenario.compare import Comparison

__all__ = ["Comparison", "as_json", "print_table", "save_picture", "save_timeline", "sentence"]
