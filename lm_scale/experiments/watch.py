"""How far a run is, read from its record while another process writes it, and one line that shows it."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

PLAIN_LINE_EVERY_S = 15.0


class Watch:
    """Follows one run directory, which need not exist yet, and what the launcher prints before it does."""

    def __init__(self, directory: Path, log: Path) -> None:
        self._directory = directory
        self._log = log
        self._offset = 0
        self._rest = b""
        self._schedule: dict[str, Any] = {}
        self.last_step: dict[str, Any] | None = None

    def describe(self) -> str:
        """Step, loss and tokens/s of the newest step; before the first one, what was printed last."""
        self._follow()
        if self.last_step is None:
            return f"starting  {self._last_printed()}".rstrip()
        step = self.last_step
        planned, budget = self._schedule.get("planned_steps"), self._schedule.get("budget_s")
        parts = [f"step {step.get('step')}" + (f"/{planned}" if planned else "")]
        if isinstance(step.get("loss"), float):
            parts.append(f"loss {step['loss']:.3f}")
        if step.get("tokens") and step.get("step_s"):
            parts.append(f"{step['tokens'] / step['step_s']:,.0f} tokens/s")
        if budget and step.get("elapsed_s") is not None:
            parts.append(f"{clock(step['elapsed_s'])} of {clock(budget)}")
        return "  ".join(parts)

    def _follow(self) -> None:
        """Take in the records that were written since; half a line waits for its other half."""
        try:
            if not self._schedule:
                header = json.loads((self._directory / "run.json").read_text(encoding="utf-8"))
                self._schedule = header.get("schedule") or {}
            with open(self._directory / "metrics.jsonl", "rb") as file:
                file.seek(self._offset)
                new = file.read()
        except (OSError, ValueError):  # not there yet
            return
        self._offset += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in reversed(lines):
            if b'"kind": "step"' in line:
                self.last_step = json.loads(line)
                break

    def _last_printed(self) -> str:
        try:
            with open(self._log, "rb") as file:
                file.seek(max(0, self._log.stat().st_size - 4096))
                text = file.read().decode(errors="replace").replace("\r", "\n")
        except OSError:
            return ""
        said = [
            line for line in text.splitlines() if line.strip() and not line.startswith("[")
        ]  # [ opens logging lines
        return "".join(letter for letter in said[-1].strip() if letter.isprintable()) if said else ""


@dataclass
class Line:
    """One line that is drawn over itself in a terminal; elsewhere a line now and then."""

    stream: IO[str]
    label: str
    _drawn: float = 0.0

    def draw(self, text: str, elapsed_s: float) -> None:
        """Show where things stand."""
        full = f"{self.label}  {text}  {clock(elapsed_s)}"
        if self.stream.isatty():
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{full[:width]}", end="", file=self.stream, flush=True)
        elif time.monotonic() - self._drawn > PLAIN_LINE_EVERY_S:
            self._drawn = time.monotonic()
            print(full, file=self.stream, flush=True)

    def end(self, text: str, elapsed_s: float) -> None:
        """The last word, which stays."""
        start = "\r\x1b[K" if self.stream.isatty() else ""
        print(f"{start}{self.label}  {text}  {clock(elapsed_s)}", file=self.stream, flush=True)


def clock(elapsed_s: float) -> str:
    """Seconds as m:ss, or h:mm:ss."""
    minutes, rest = divmod(int(elapsed_s), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
