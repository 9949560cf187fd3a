"""Settings that contradict each other, or that DeepSpeed ignores or refuses together: all subjects."""

from __future__ import annotations

from collections.abc import Iterator

from lm_scale.strategy.rules import loop, offload, precision, zero
from lm_scale.strategy.rules.findings import Finding, Setting
from lm_scale.strategy.rules.reading import Document


def findings(document: Document, setting: Setting) -> Iterator[Finding]:
    for subject in (precision, zero, offload, loop):
        yield from subject.findings(document, setting)
