"""`python -m lm_scale.report [PATH ...]`: the runs as one table."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from lm_scale.arguments import ReportArguments, parse, run_command
from lm_scale.report import read, tables


def main(argv: Sequence[str]) -> int:
    arguments = parse(ReportArguments, argv, "python -m lm_scale.report", "The runs as one table.")
    keys = tables.chosen_keys(arguments.columns)
    report = read(arguments.paths or ["runs"], arguments.baseline)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name must not break the table in an ASCII terminal
    for problem in report.problems:
        print(f"warning: left out: {problem}", file=sys.stderr)
    if arguments.format == "json":
        print(tables.to_json(report.rows, keys))
    elif arguments.format == "csv":
        print(tables.to_csv(report.rows, keys))
    elif arguments.format == "md":
        print(tables.to_markdown(report, keys if arguments.columns else None))
    else:
        tables.print_terminal(report, keys if arguments.columns else None)
    return 0


if __name__ == "__main__":
    run_command(main)
