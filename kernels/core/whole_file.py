"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to be written, which takes its name at the end; until then an older one keeps it.

    What is no ordinary file, such as /dev/stdout, is written as it is.

    Raises:
        OSError: the file cannot be written; the error names it.
    """
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        target = path.resolve()  # a link stays a link
        part = target.with_name(f".{target.name}-{secrets.token_hex(8)}")
        with part.open("xb") as file:
            try:
                yield file
                file.flush()
                if target.exists():  # as if it had been written itself
                    shutil.copymode(target, part)
                os.replace(part, target)
            except BaseException:
                part.unlink()
                raise
    except OSError as error:
        # Of a full disk the system names no file.
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from error


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file by `whole_file`; text in UTF-8.

    Raises:
        OSError: as `whole_file`.
    """
    with whole_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)
