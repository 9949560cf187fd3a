"""What DeepSpeed's own configuration class does with documents, all in one process; run as a script it is that process.

No process group: the world size is 1.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

BATCH = {"train_micro_batch_size_per_gpu": 1}


def told(documents: list[Any], watched: list[Any]) -> tuple[list[str | None], list[list[str]]]:
    """The verdicts on some documents, and the places that DeepSpeed asks for while it reads others, from one process.

    The places are dotted, and those outside DeepSpeed's pydantic models.
    """
    answer = _asked({"documents": documents, "lookups": watched})
    return answer["verdicts"], answer["lookups"]


def verdicts_and_values(documents: list[Any], probes: list[tuple[Any, str]]) -> tuple[list[str | None], list[Any]]:
    """The verdicts on some documents, and of others an attribute (dotted) of the `DeepSpeedConfig` made from it."""
    answer = _asked({"documents": documents, "probes": probes})
    return answer["verdicts"], answer["values"]


def verdicts(documents: list[Any]) -> list[str | None]:
    """DeepSpeed's error on each document, as `Type: text`; None where it takes the document."""
    return _asked({"documents": documents})["verdicts"]


def put(place: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A document with one value, and with a batch size unless the value is that."""
    document: dict[str, Any] = {}
    node = document
    for key in place[:-1]:
        node = node.setdefault(key, {})
    node[place[-1]] = value
    return BATCH | document


def _asked(question: dict[str, Any]) -> dict[str, Any]:
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__]
    done = subprocess.run(command, input=json.dumps(question), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


class Recording(dict[str, Any]):
    """A block that notes which of its keys are asked for."""

    place: tuple[str, ...] = ()
    asked: list[str]

    def note(self, key: str) -> None:
        self.asked.append(".".join((*self.place, key)))

    def get(self, key: str, default: Any = None) -> Any:
        self.note(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.note(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.note(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return self

    def __iter__(self) -> Iterator[str]:
        return iter(list(super().keys()))


def recording(block: dict[str, Any], asked: list[str], place: tuple[str, ...] = ()) -> Recording:
    found = Recording()
    found.place, found.asked = place, asked
    for key, value in block.items():
        found[key] = recording(value, asked, (*place, key)) if isinstance(value, dict) else value
    return found


def _verdict(document: Any) -> str | None:
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(document)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _value(document: Any, attribute: str) -> Any:
    from deepspeed.runtime.config import DeepSpeedConfig

    found: Any = DeepSpeedConfig(document)
    for name in attribute.split("."):
        found = getattr(found, name)
    return found


def main() -> None:
    logging.disable(logging.CRITICAL)
    question = json.load(sys.stdin)
    found: dict[str, Any] = {"verdicts": [_verdict(document) for document in question.get("documents", [])]}
    found["lookups"] = []
    for document in question.get("lookups", []):
        asked: list[str] = []
        verdict = _verdict(recording(copy.deepcopy(document), asked))
        assert verdict is None, verdict
        found["lookups"].append(sorted(set(asked)))
    found["values"] = [_value(document, attribute) for document, attribute in question.get("probes", [])]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
