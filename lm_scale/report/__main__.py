"""`python -m lm_scale.report [PATH ...]`: the runs as one table."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from lm_scale.arguments import EXIT_FAILED, ReportArguments, parse, run_command


def main(argv: Sequence[str]) -> int:
    arguments = parse(ReportArguments, argv, "python -m lm_scale.report", "The runs as one table.")
    from lm_scale.report import NothingReadError, read, tables  # after the parser: --help needs none of it
    from lm_scale.report.select import check, select

    keys = tables.chosen_keys(arguments.columns, arguments.layout)
    check(arguments.filter, arguments.sort, arguments.group_by)  # a typo must not wait for a thousand runs
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name must not break the table in an ASCII terminal
    try:
        report = read(arguments.paths or ["runs"], arguments.baseline)
    except NothingReadError as error:
        _warn(error.problems)
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    _warn(report.problems)
    selection = select(report, arguments.filter, arguments.sort, arguments.group_by, arguments.merge)
    if arguments.format == "json":
        print(tables.to_json(selection.rows, keys))
    elif arguments.format == "csv":
        print(tables.to_csv(selection.rows, keys))
    elif arguments.format == "md":
        print(tables.to_markdown(selection, keys if arguments.columns else None, arguments.layout))
    else:
        tables.print_terminal(selection, keys if arguments.columns else None, arguments.layout)
    return 0


def _warn(problems: Sequence[str]) -> None:
    for problem in problems:
        print(f"warning: left out: {' '.join(problem.split())}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
