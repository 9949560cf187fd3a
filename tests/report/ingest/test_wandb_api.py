"""W&B projects by name, through the real client against a local server that answers as W&B does.

W&B itself cannot be reached from a test. The shape of the answers is derived from the client's own GraphQL queries and
from its code that reads them (wandb 0.31: `apis/public/runs.py`, and the queries `RunParquetHistory` and `HistoryPage`
of its service), not recorded from W&B; config, summary and history are those of a Trainer run as the client logs them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]

READ = """
import json, msgspec, sys
from lm_scale.arguments import UserError
from lm_scale.report.ingest import UnreadableError, wandb_api
try:
    found = wandb_api.read(sys.argv[1], float(sys.argv[2]))
    print("ANSWER", json.dumps([msgspec.to_builtins(reading) for reading in found]))
except (UserError, UnreadableError) as error:
    print("ANSWER", json.dumps([type(error).__name__, str(error)]))
"""

ARGUMENTS = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.0005,
    "lr_scheduler_type": "cosine",
    "logging_steps": 50,
    "logging_strategy": "steps",
    "max_steps": 200,
    "num_train_epochs": 3.0,
    "load_best_model_at_end": False,
    "gradient_checkpointing": False,
    "bf16": True,
    "fp16": False,
    "deepspeed": None,
    "fsdp": None,
    "model/num_parameters": 17888,
}
HISTORY: list[dict[str, Any]] = [
    {"_step": 0, "_timestamp": 1735732830.0, "train/global_step": 50, "train/epoch": 0.25, "train/loss": 4.0},
    {"_step": 1, "_timestamp": 1735732860.0, "train/global_step": 100, "train/epoch": 0.5, "train/loss": "NaN"},
    {"_step": 2, "_timestamp": 1735732865.0, "train/global_step": 100, "train/epoch": 0.5},
    {"_step": 3, "_timestamp": 1735732870.0, "train/global_step": 100, "train/epoch": 0.5, "eval/loss": 3.5},
]
SUMMARY = {
    "train/global_step": 100,
    "train/epoch": 0.5,
    "train_runtime": 65.0,
    "train_loss": 3.75,
    "train_samples_per_second": 196.923,  # 200 planned steps of 64 samples over 65 s
    "train_steps_per_second": 3.077,
    "_wandb": {"runtime": 80},
}


def node(identity: str, **changes: Any) -> dict[str, Any]:
    """A run as `RunFragment` asks for it: config, summary and system metrics are JSON within JSON."""
    base = {
        **{
            "id": f"storage-{identity}",
            "projectId": "12",
            "tags": [],
            "name": identity,
            "displayName": f"run {identity}",
        },
        **{"sweepName": None, "state": "finished", "group": None, "jobType": None, "commit": None, "readOnly": False},
        **{"createdAt": "2025-01-01T12:00:00Z", "heartbeatAt": "2025-01-01T12:02:00Z", "description": None},
        **{"notes": None, "systemMetrics": "{}", "historyLineCount": 4, "historyKeys": {"keys": {}, "lastStep": 3}},
        "user": {"name": "Ada", "username": "ada"},
        "config": json.dumps({key: {"value": value, "desc": None} for key, value in ARGUMENTS.items()}),
        "summaryMetrics": json.dumps(SUMMARY),
    }
    return {**base, **changes}


RUNS = [node("aaaa1111"), node("bbbb2222", state="crashed", summaryMetrics=json.dumps({"train/global_step": 100}))]


def answer(query: str, variables: dict[str, Any]) -> dict[str, Any]:
    """The `data` of W&B's answer to one query."""
    name = (re.search(r"query (\w+)", query) or [None, ""])[1]
    if name in ("Viewer", "GetDefaultEntity"):
        account = {"id": "1", "entity": "ada", "username": "ada", "email": "", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": account}
    if variables.get("project") != "p":
        return {"project": None}
    if name == "Runs":
        edges = [{"node": run, "cursor": run["name"]} for run in RUNS]
        page = {"endCursor": RUNS[-1]["name"], "hasNextPage": False}
        connection = {"edges": edges, "pageInfo": page}
        return {"project": {"internalId": "12", "runCount": len(RUNS), "readOnly": False, "runs": connection}}
    asked = variables.get("name") or variables.get("runName") or variables.get("run")
    found = next((run for run in RUNS if run["name"] == asked), None)
    if name == "HistoryPage":
        rows = [json.dumps(row) for row in HISTORY if variables["minStep"] <= row["_step"] < variables["maxStep"]]
        found = {"history": rows}
    elif name == "RunParquetHistory":
        found = {"parquetHistory": {"parquetUrls": [], "liveData": []}}
    elif name == "RunFiles":
        found = {"fileCount": 0, "files": {"edges": [], "pageInfo": {"endCursor": None, "hasNextPage": False}}}
    return {"project": {"internalId": "12", "run": found}}


class Server(BaseHTTPRequestHandler):
    """W&B's GraphQL address; `silent` accepts requests and answers none."""

    silent = False
    refusing = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.silent:
            time.sleep(60)
        status, data = 200, b"{}"
        if self.refusing:
            status, data = 401, b'{"errors":[{"message":"user is not logged in"}]}'
        elif self.path == "/graphql":
            asked = json.loads(body)
            data = json.dumps({"data": answer(asked["query"], asked.get("variables") or {})}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing: pytest's output is no place for it."""


@pytest.fixture
def wandb_server(request: pytest.FixtureRequest) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Asked", (Server,), getattr(request, "param", {})))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(server: str, address: str, home: Path, timeout_s: float = 30, key: str | None = "0" * 40) -> Any:
    """What a process of its own reads, since the client keeps its login and its service for the life of a process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"WANDB_BASE_URL": server, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    environment |= {"WANDB_API_KEY": key} if key else {}
    command = [sys.executable, "-c", READ, address, str(timeout_s)]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=90)
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert len(lines) == 1, done.stdout + done.stderr
    return json.loads(lines[0].removeprefix("ANSWER "))


def test_the_runs_of_a_project_become_rows(wandb_server: str, tmp_path: Path) -> None:
    whole, crashed = (found["row"] for found in ask(wandb_server, "wandb:ada/p", tmp_path))
    assert (whole["name"], whole["owner"], whole["source"]) == ("run aaaa1111", "ada", "wandb")
    assert whole["wandb_url"] == f"{wandb_server}/ada/p/runs/aaaa1111"
    assert (whole["world_size"], whole["global_batch"], whole["precision"]) == (4, 64, "bf16")
    assert (whole["steps"], whole["planned_steps"], whole["samples_seen"]) == (100, 200, 6400)
    assert whole["samples_per_s"] == pytest.approx(6400 / 65.0)
    assert (whole["train_loss"], whole["eval_loss"], whole["status"]) == (3.75, 3.5, None)
    assert {"planned_not_completed", "loss_not_finite"} <= {flag["code"] for flag in whole["flags"]}
    assert (whole["started_at"], whole["finished_at"]) == (
        "2025-01-01T12:00:00.000+00:00",
        "2025-01-01T12:01:20.000+00:00",
    )
    assert (crashed["status"], crashed["steps"], crashed["runtime_s"], crashed["eval_loss"]) == (
        "crashed",
        *(None,) * 3,
    )


def test_one_run_has_the_points_of_its_whole_history(wandb_server: str, tmp_path: Path) -> None:
    (found,) = ask(wandb_server, "wandb:ada/p/aaaa1111", tmp_path)
    assert [(point["step"], point["elapsed_s"]) for point in found["steps"]] == [(50, 30.0), (100, 60.0)]
    assert [(point["step"], point["loss"], point["final"]) for point in found["evals"]] == [(100, 3.5, True)]


@pytest.mark.parametrize("address", ["wandb:ada/unknown", "wandb:ada/p/zzzz9999"])
def test_an_unknown_project_or_run_is_one_line(wandb_server: str, tmp_path: Path, address: str) -> None:
    kind, text = ask(wandb_server, address, tmp_path)
    assert (kind, text.partition(": W&B has no such")[0]) == ("UserError", address)


def test_without_a_login_the_line_says_how_to_log_in(wandb_server: str, tmp_path: Path) -> None:
    kind, text = ask(wandb_server, "wandb:ada/p", tmp_path, key=None)
    assert kind == "UserError"
    assert "wandb login" in text


@pytest.mark.parametrize("wandb_server", [{"refusing": True}], indirect=True)
def test_a_refused_login_says_so(wandb_server: str, tmp_path: Path) -> None:
    kind, text = ask(wandb_server, "wandb:ada/p", tmp_path)
    assert (kind, "wandb login" in text, "\n" in text) == ("UserError", True, False)


@pytest.mark.parametrize("wandb_server", [{"silent": True}], indirect=True)
def test_a_server_that_does_not_answer_is_waited_for_as_long_as_was_said(wandb_server: str, tmp_path: Path) -> None:
    kind, text = ask(wandb_server, "wandb:ada/p", tmp_path, timeout_s=2)
    assert kind == "UnreadableError"
    assert "did not answer within 2 s" in text


def test_no_network_is_one_line(tmp_path: Path) -> None:
    kind, text = ask("http://127.0.0.1:9", "wandb:ada/p", tmp_path, timeout_s=2)
    assert (kind, "\n" in text) == ("UnreadableError", False)


def test_an_address_of_another_form_says_the_form(tmp_path: Path) -> None:
    kind, text = ask("http://127.0.0.1:9", "wandb:project", tmp_path)
    assert kind == "UserError"
    assert "wandb:entity/project" in text
