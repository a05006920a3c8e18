"""The child of `tuner.measure.process`, which may die: it does one piece of work after another.

Requests are pickles on standard input, because the parent is trusted. Answers are plain JSON on
standard output. In front of both stands a `FRAME`: the number of the request, which the answer
repeats, and the number of bytes that follow.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
import traceback
from typing import Any

from fastrun.tuner.measure.plain import to_plain

FRAME = struct.Struct("<QQ")


def main() -> None:
    """Answer requests until the parent closes the pipe."""
    sys.stdout = sys.stderr  # printed text must not mix with answers
    while header := sys.stdin.buffer.read(FRAME.size):
        number, size = FRAME.unpack(header)
        answer = json.dumps(_answer(sys.stdin.buffer.read(size))).encode()
        _write(FRAME.pack(number, len(answer)) + answer)
    os._exit(0)


def _answer(request: bytes) -> dict[str, Any]:
    try:
        work, given = pickle.loads(request)
        return {"value": to_plain(work(*given))}
    except Exception as error:
        names = [kind.__name__ for kind in type(error).__mro__]
        arguments = [a for a in error.args if a is None or type(a) in (str, int)]
        if len(arguments) < len(error.args):
            arguments = [str(error)]
        elif isinstance(error, OSError) and isinstance(error.filename, str):
            arguments.append(error.filename)
        return {"raised": [names, arguments, traceback.format_exc()]}


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
