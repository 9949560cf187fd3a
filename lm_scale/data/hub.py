"""Data sets and the network of the Hugging Face hub."""

from __future__ import annotations

import os
import socket
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from lm_scale.arguments import UserError
from lm_scale.data.corpus import Corpus
from lm_scale.data.formats import missing_column


class HubCorpus(Corpus):
    """The `train` split of a hub data set, `name[:config]`, memory-mapped by the datasets library.

    Raises:
        UserError: the hub has no such data set, cannot be reached, or the data set has no text column.
    """

    def __init__(self, name: str, text_column: str) -> None:
        super().__init__(name)
        go_offline_if_unreachable()
        import datasets

        repository, _, config = name.partition(":")
        datasets.disable_progress_bars()
        try:
            self.table: Any = datasets.load_dataset(repository, config or None, split="train")
        except Exception as error:  # the library raises dozens of types; each means that there is no such text for us
            raise UserError(
                f"--dataset {name}: no file or folder of this name, and not loaded from the Hugging Face hub either: "
                f"{one_sentence(error)}"
            ) from error
        if text_column not in self.table.column_names:
            raise missing_column(f"--dataset {name}", text_column, self.table.column_names)
        self.text_column = text_column

    def fingerprint(self) -> str:
        """The library's own: it covers the repository's commit, the configuration and the split."""
        return str(self.table._fingerprint)

    def _texts(self) -> Iterator[str]:
        rows, done = max(len(self.table), 1), 0
        for batch in self.table.select_columns([self.text_column]).iter(batch_size=1024):
            for text in batch[self.text_column]:
                if text is not None and not isinstance(text, str):
                    raise UserError(
                        f"--dataset {self.name}: column {self.text_column} holds no text; give --text_column"
                    )
                yield text or ""
            done += len(batch[self.text_column])
            self.read_share = done / rows


def go_offline_if_unreachable() -> None:
    """Let the Hugging Face libraries use their caches alone where the hub cannot be reached.

    They would otherwise retry each request for 20 to 50 seconds and say so on stderr, also for what they have cached.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or urllib.request.getproxies():
        return
    endpoint = urlsplit(constants.ENDPOINT)
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        socket.create_connection((endpoint.hostname or "", port), timeout=5).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def one_sentence(error: BaseException) -> str:
    """The beginning of a library's message, without its lines of advice."""
    text = (str(error).strip().splitlines() or [""])[0]
    return text or type(error).__name__
