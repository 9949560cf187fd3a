"""The known key that an unknown one was meant to be: its name, and its place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from lm_scale.strategy import known
from lm_scale.strategy.rules.findings import Place
from lm_scale.strategy.rules.foreign import NAMES, PLACES

ALIKE = 0.8  # difflib's ratio from which two names of one block are taken for one: tag_validation_mode has 0.85


@dataclass(frozen=True)
class Suggestion:
    """`places` that the key may have meant, best first; `whose` name it is elsewhere; `advice` where there is none."""

    places: tuple[Place, ...] = ()
    whose: str = ""
    advice: str = ""
    moved: bool = False
    """The name is right and stands in the wrong block."""


def suggest(place: Place) -> Suggestion:
    """For an unknown key at `place`.

    A typo of a key of this block comes first, then another program's name for it, then the same name in another block,
    then a typo of a name in another block.
    """
    name, here = place[-1], known.block(place[:-1])
    mine = {**here.keys} if here else {}
    near = _nearest(name, mine, 1)
    if near:
        return Suggestion(tuple((*place[:-1], key) for key in near))
    if place[:-1] in (("optimizer",), ("scheduler",)) and _plain(name) in _parameters(place[0]):
        return Suggestion(((place[0], "params", _plain(name)),), moved=True)
    foreign = PLACES.get(place) or NAMES.get(_plain(name))
    if foreign is not None:
        return Suggestion(tuple(tuple(one.split(".")) for one in foreign.places), foreign.whose, foreign.advice)
    elsewhere = _elsewhere(name, place)
    if elsewhere:
        return Suggestion(elsewhere, moved=True)
    near = _nearest(name, mine, 1 + len(name) // 8)
    if near:
        return Suggestion(tuple((*place[:-1], key) for key in near))
    near = [key for key in _nearest(name, _all_names(), len(name) // 6) if len(key) > 4]
    if near:
        return Suggestion(_sorted([one for key in near for one in known.places_of(key)], place))
    alike = difflib.get_close_matches(_plain(name), mine, n=1, cutoff=ALIKE)
    return Suggestion(tuple((*place[:-1], key) for key in alike))


@cache
def _parameters(block: str) -> frozenset[str]:
    """The names of all parameters that some optimizer, or some scheduler, takes."""
    if block == "scheduler":
        signatures = [told["parameters"] for told in known.table()["schedulers"].values()]
    else:
        signatures = [one for told in known.table()["optimizers"].values() for one in told.get("variants", {}).values()]
        signatures += [told.get("own", {}) for told in known.table()["optimizers"].values()]
    return frozenset(name for signature in signatures for name in signature)


def _elsewhere(name: str, place: Place) -> tuple[Place, ...]:
    """Other places of a key of this very name; none where the name stands in so many that it says nothing."""
    found = _sorted([one for one in known.places_of(_plain(name)) if "*" not in one], place)
    return found if len(found) <= 3 else ()


def _sorted(places: list[Place], wrong: Place) -> tuple[Place, ...]:
    """Those in a block inside or around the wrong one first; of two names of one setting the documented one alone."""

    def distance(one: Place) -> tuple[bool, int, Place]:
        related = one[: len(wrong) - 1] == wrong[:-1] or wrong[: len(one) - 1] == one[:-1]
        return not related, len(one), one

    spelled = [one for one in places if not _is_second_name(one)]
    return tuple(sorted(spelled or places, key=distance))


def _is_second_name(place: Place) -> bool:
    """`prefetch_bucket_size`, say, documented as `stage3_prefetch_bucket_size`; anything in `bfloat16`."""
    key = known.key(place)
    return place[0] == "bfloat16" or (key is not None and key.alias.startswith("stage3_"))


def _nearest(name: str, names: Iterable[str], most: int) -> list[str]:
    """The names at the least edit distance, if that is at most `most`."""
    spelled = {_plain(name), name.lower()}
    least, found = min(most, max(len(name) - 1, 1)), list[str]()
    for key in names:
        distance = min(edits(one, key, least) for one in spelled)
        if distance < least:
            least, found = distance, []
        if distance == least:
            found.append(key)
    return sorted(found)


@cache
def _all_names() -> frozenset[str]:
    return frozenset(key for block in known.blocks().values() for key in block.keys)


@cache
def _letters(name: str) -> frozenset[str]:
    return frozenset(name)


@cache
def _plain(name: str) -> str:
    """The name in DeepSpeed's spelling: `gradientClipping`, `gradient-clipping` and ` Gradient_Clipping` as one."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return snake.lower().replace("-", "_").replace(" ", "_")


def edits(a: str, b: str, most: int) -> int:
    """Insertions, deletions, substitutions and transpositions of neighbours from `a` to `b`; `most` + 1 if more.

    The optimal string alignment distance, row by row.
    """
    if abs(len(a) - len(b)) > most or len(_letters(a) ^ _letters(b)) > 2 * most:  # an edit changes two letters at most
        return most + 1
    if most == 1:
        return _one_edit(a, b)
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        last, row, older = row, [i], before
        for j, other in enumerate(b, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
        if min(row) > most:
            return most + 1
        before = last
    return min(row[-1], most + 1)


def _one_edit(a: str, b: str) -> int:
    """`edits` up to 1, by comparing what follows the first difference: a typo is looked for among all known names."""
    if a == b:
        return 0
    i = next((i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))
    rest, other = a[i:], b[i:]
    swapped = rest[:2] == other[1::-1] and rest[2:] == other[2:] and len(other) > 1
    return 1 if rest[1:] == other[1:] or rest == other[1:] or rest[1:] == other or swapped else 2
