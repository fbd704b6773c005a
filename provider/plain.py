"""Many events at once, without parsing them: those of vLLM that carry the next tokens of an answer's one choice.

Nearly all events of nearly all answers are such, and parsing each costs a gateway more than all else together. What
makes it safe: within a JSON text a quotation mark is escaped, so that `"token_ids":[` can only be a key. Whatever
looks otherwise in any way is left to the parser.
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass

_IDS = re.compile(rb',"token_ids":\[(\d+(?:,\d+)*)\]')
_USAGE = re.compile(rb',"usage":\{"prompt_tokens":(\d+),"total_tokens":\d+,"completion_tokens":\d+[^{}]*\}(?=\}\n\n)')

_FIRST = b'"index":0,'
"""Of the first choice; of several prompts, each has one."""
_FINISHED = b'"finish_reason":"'


@dataclass(frozen=True, slots=True)
class Plain:
    events: bytes
    """As the client gets them."""
    ids: array[int]
    prompt_tokens: int | None
    """By the engine's count; None: it was not told."""


def read(events: bytes, *, shows_ids: bool, shows_counts: bool) -> Plain | None:
    """Of whole events of an answer with one choice; None where any is not plain. What is not to be shown is gone."""
    found = _IDS.findall(events)
    if not found or not len(found) == events.count(b"\n\n") == events.count(_FIRST):
        return None
    counts = _USAGE.findall(events)
    if len(counts) != events.count(b'"usage":'):
        return None
    try:
        ids = array("I", map(int, b",".join(found).split(b",")))
    except OverflowError:
        return None
    if not shows_ids:
        events = _IDS.sub(b"", events)
    if counts and not shows_counts:
        events = _USAGE.sub(b"", events)
    return Plain(events, ids, int(counts[-1]) if counts else None)


def cut(events: bytes) -> tuple[bytes, bytes]:
    """Those before the event in which the answer's choice finishes, and the rest: there, no two engines are alike."""
    at = events.find(_FINISHED)
    if at < 0:
        return events, b""
    start = events.rfind(b"\n\n", 0, at) + 2
    return (events[:start], events[start:]) if start > 1 else (b"", events)
