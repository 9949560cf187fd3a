"""Rows of the runs of a W&B project, `wandb:entity/project` or `wandb:entity/project/run_id`, through W&B's own client.

The client asks W&B for each run's config, summary and whole history. Its own timeouts are a request's, and some of its
requests have none, so it works in a thread of its own, and each run must come within `TIMEOUT_S`.
"""

from __future__ import annotations

import contextlib
import datetime
import netrc
import os
import queue
import re
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

from lm_scale.arguments import UserError
from lm_scale.report.ingest import Reading, UnreadableError, wandb_runs
from lm_scale.report.ingest.wandb_values import Recorded, number

PREFIX = "wandb:"
ADDRESS = re.compile(r"wandb:/{0,2}(?P<entity>[^/\s]+)/(?P<project>[^/\s]+)(?:/(?:runs/)?(?P<run>[^/\s]+))?/?")
TIMEOUT_S = 60.0
"""The longest wait for the next run."""
REQUEST_TIMEOUT_S = 20

STATES = {
    "finished": "completed",
    "failed": "crashed",
    "crashed": "crashed",
    "killed": "interrupted",
    "preempted": "interrupted",
    "running": "running",
}
"""W&B's states. `crashed` is a run of which nothing more was heard: the rows that it had not sent yet are missing."""
ENDED = ("finished", "failed", "killed")


def recognises(address: str) -> bool:
    """Whether `address` names runs of W&B rather than a file."""
    return address.startswith(PREFIX)


def read(address: str, timeout_s: float = TIMEOUT_S) -> list[Reading]:
    """The runs of a project in the order in which they were created, or the one run that is named.

    Raises:
        UserError: the address has another form, there is no login, or W&B has no such project or run, or no runs in it.
        UnreadableError: W&B does not answer, or what it answers cannot become a row.
    """
    found = ADDRESS.fullmatch(address)
    if found is None:
        raise UserError(f"{address}: not of the form wandb:entity/project or wandb:entity/project/run_id")
    readings = []
    for run in _runs(address, found["entity"], found["project"], found["run"], timeout_s):
        try:
            readings.append(wandb_runs.reading(run))
        except ValueError as error:
            raise UnreadableError(f"{run.path}: {error}") from None
    if not readings:
        raise UserError(f"{address}: the project has no runs")
    return readings


def _runs(address: str, entity: str, project: str, run_id: str | None, timeout_s: float) -> Iterator[Recorded]:
    """The runs as the thread gets them, each within `timeout_s`."""
    answers: queue.Queue[Recorded | Exception | None] = queue.Queue()

    def ask() -> None:
        try:
            for run in _ask(entity, project, run_id):
                answers.put(run)
            answers.put(None)
        except Exception as error:  # of the client, of whatever kind: raised where the runs are waited for
            answers.put(error)

    threading.Thread(target=ask, name="wandb", daemon=True).start()
    while True:
        try:
            answer = answers.get(timeout=timeout_s)
        except queue.Empty:
            raise UnreadableError(
                f"{address}: W&B did not answer within {timeout_s:g} s; try again, or give one run's address"
            ) from None
        if answer is None:
            return
        if isinstance(answer, Exception):
            raise _explained(address, answer) from None
        yield answer


def _ask(entity: str, project: str, run_id: str | None) -> Iterator[Recorded]:
    """One `Recorded` a run, from W&B's client."""
    import wandb

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    if not _has_login(settings):
        raise UserError("not logged in to W&B; run `wandb login`, or set WANDB_API_KEY")
    api = wandb.Api(timeout=REQUEST_TIMEOUT_S)
    runs = [api.run(f"{entity}/{project}/{run_id}")] if run_id else api.runs(f"{entity}/{project}", lazy=False)
    for run in runs:
        yield _recorded(run)


def _has_login(settings: Any) -> bool:
    """Whether the client will find credentials; in a terminal it asks for them otherwise, and waits."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or settings.api_key:
        return True
    try:
        file = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return file.authenticators(urllib.parse.urlsplit(settings.base_url).hostname or "") is not None


def _recorded(run: Any) -> Recorded:
    """What the client's `Run` says."""
    metadata = run.metadata
    summary = dict(run.summary_metrics or {})
    inner = summary.get("_wandb")
    user = getattr(run, "user", None)
    recorded = Recorded(
        source="wandb",
        name=run.name or run.id,
        path=f"{PREFIX}{run.entity}/{run.project}/{run.id}",
        config=dict(run.config or {}),
        summary=summary,
        history=[dict(line) for line in run.scan_history()],
        metadata=dict(metadata) if isinstance(metadata, dict) else {},
        whole=run.state in ENDED,
        status=STATES.get(run.state),
        owner=getattr(user, "username", None) or run.entity,
        url=run.url,
        run_id=run.id,
        runtime_s=number(inner.get("runtime")) if isinstance(inner, dict) else None,
    )
    host = recorded.metadata.get("host")
    recorded.host = host if isinstance(host, str) and host else None
    created = recorded.metadata.get("startedAt") or run.created_at
    with contextlib.suppress(TypeError, ValueError):
        start = datetime.datetime.fromisoformat(created)
        recorded.started_at = start if start.tzinfo else start.replace(tzinfo=datetime.UTC)
    return recorded


def _explained(address: str, error: Exception) -> Exception:
    """The error in one line with what to do: W&B's client has many classes, and names the cause in the text."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return UserError(f"{address}: {error}")
    if isinstance(error, ImportError):
        return UserError(f"{address}: wandb cannot be imported ({text}); pip install wandb")
    lowered = text.lower()
    if any(word in lowered for word in ("401", "403", "api key", "api_key", "permission", "credentials", "login")):
        return UserError(f"{address}: W&B refuses the login ({text[:200]}); run `wandb login`, or ask for access")
    if any(word in lowered for word in ("could not find", "not found", "404")):
        return UserError(f"{address}: W&B has no such project or run; check the name, and that your login may see it")
    return UnreadableError(f"{address}: W&B could not be read: {type(error).__name__}: {text[:200]}")
