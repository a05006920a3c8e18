"""Opens an SQL database, a file or a server, with today's schema and errors of one line."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sql
from sqlalchemy import exc

from fastrun.kernels.native.cache import cache_root
from fastrun.tuner.store.forks import FORKS
from fastrun.tuner.store.schema import FIRST_TABLES, META, TABLES, migration, schema_version

_CREATION_LOCK = 0x46617374
"""An arbitrary number that all clients of a PostgreSQL server use."""

_SMALLEST = 512
"""Bytes of an SQLite file that is not empty, at least. SQLite takes one byte for an empty file."""

_PAUSE = 0.01
"""Seconds between two attempts where SQLite does not wait by itself."""

_ADVICE = {
    "SQLITE_BUSY": "is locked by another process: wait for it to end or use another file",
    "SQLITE_READONLY": "is read-only: make it writable, or name another file (--db) or another "
    "folder for all files (FASTRUN_CACHE)",
    "SQLITE_FULL": "has no room: free some disk space and continue; stored records are safe",
    "SQLITE_IOERR": "cannot be written or read, the disk is full or failing: free some space and "
    "continue; stored records are safe",
    "SQLITE_CORRUPT": "is damaged: move it away (`sqlite3 FILE .recover` saves what is readable)",
    "SQLITE_NOTADB": "is not a database: name another file",
    "SQLITE_CANTOPEN": "cannot be opened: check that it is a file you may read, in a folder "
    "that exists and, to make it, may be written (--db and FASTRUN_CACHE name others)",
}


class DatabaseError(RuntimeError):
    """The database cannot be used so. The message is one line and says what to do."""


class Store:
    """The connection of `tuner.store.database.Database`, which documents the arguments.

    An empty database gets the tables of this program; one of an older schema is migrated. A file
    that is only read stays as it is, and a migrated copy in memory is read.
    Transactions of several processes wait for each other. A forked process opens connections of
    its own. A file is opened by SQLite alone: closing it elsewhere would drop SQLite's locks of
    the process.

    Every method raises:
        DatabaseError: the database is locked, read-only, damaged, of a newer schema or another
            program, or the disk is full.
    """

    def __init__(self, url: str | Path | None, read_only: bool, timeout: float) -> None:
        address = _address(str(url or cache_root() / "fastrun.db"))
        path = self.path = _file(address)
        self.name = str(path) if path else address.render_as_string(hide_password=True)
        self.read_only = read_only or bool(path and not _writable(path))
        options: dict[str, Any] = {}
        if address.get_backend_name() == "sqlite":
            options["connect_args"] = {"timeout": timeout}
        else:
            options["pool_pre_ping"] = True  # the server may have been restarted
        if path:
            address = self._file_address(path)
        try:
            self._use(sql.create_engine(address, **options))
        except ModuleNotFoundError as error:
            raise DatabaseError(
                f"database {self.name} needs the Python package {error.name}: install it"
            ) from error
        except exc.ArgumentError as error:
            raise DatabaseError(f"database {self.name}: {error}") from error
        if path or address.get_backend_name() != "sqlite":
            FORKS.add(self)  # of a database in memory a child has a copy
        self._timeout = timeout
        self._prepare()

    def close(self) -> None:
        """Close the connections to the file or server."""
        self._engine.dispose()

    def holds(self, path: Path) -> bool:
        """Whether a path leads to the database's file, also by another name."""
        return bool(self.path and self.path.exists() and path.exists() and path.samefile(self.path))

    @contextmanager
    def reading(self) -> Iterator[sql.Connection]:
        """A transaction that reads."""
        with FORKS.use(), self._explained(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sql.Connection]:
        """A transaction that writes. It is committed at the end of the block, undone on errors."""
        if self.read_only:
            raise DatabaseError(f"database {self.name} {_ADVICE['SQLITE_READONLY']}")
        with self._changing() as connection:
            yield connection

    @contextmanager
    def _changing(self) -> Iterator[sql.Connection]:
        with FORKS.use(), self._explained(), self._writer.begin() as connection:
            yield connection

    def _use(self, engine: sql.Engine) -> None:
        if engine.name == "sqlite":
            sql.event.listen(engine, "connect", self._on_connect)
            sql.event.listen(engine, "begin", self._on_begin)
        self._engine, self._writer = engine, engine.execution_options(writes=True)

    def _on_connect(self, connection: sqlite3.Connection, _: object) -> None:
        # SQLAlchemy's begin event opens transactions, not the driver.
        connection.isolation_level = None
        connection.execute("PRAGMA trusted_schema = OFF")
        # With a write-ahead log a commit reaches the operating system, where it survives the
        # process. A loss of power may cost the last commits, but never the file.
        connection.execute("PRAGMA synchronous = NORMAL")

    @staticmethod
    def _on_begin(connection: sql.Connection) -> None:
        # A transaction that reads first and writes later could not wait for the lock of another.
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    def _file_address(self, path: Path) -> sql.URL:
        if 0 < _size(path) < _SMALLEST:
            raise DatabaseError(f"database {self.name} {_ADVICE['SQLITE_NOTADB']}")
        query = {"uri": "true", "mode": "ro" if self.read_only else "rwc"}
        if self.read_only:
            if not os.path.exists(path):
                raise DatabaseError(f"no database at {path}: check the name, or tune first")
            # Without a log there is no writer, and this process could not make a log here.
            if not os.access(path.parent, os.W_OK) and not Path(f"{path}-wal").exists():
                query["immutable"] = "1"
        elif path.parent == cache_root().absolute():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DatabaseError(
                    f"cannot make the folder {path.parent}: {error.strerror}; name another file "
                    "(--db), or another folder for all files (FASTRUN_CACHE)"
                ) from error
        elif not path.parent.is_dir():
            raise DatabaseError(
                f"no folder {path.parent} for the database {path.name}: check the name, or make it"
            )
        return sql.URL.create("sqlite", database=f"file:{quote(str(path))}", query=query)

    def _prepare(self) -> None:
        """Check that the database is of this program; make missing tables, migrate older ones."""
        with self.reading() as connection:
            version = self._stored_version(connection)
        if self.read_only and version != schema_version():
            if not self.path or version is None:
                state = "is empty" if version is None else f"has schema {version}, which is older"
                raise DatabaseError(
                    f"database {self.name} {state}: a command that writes to it, such as "
                    "`fastrun tune --db`, brings it up to date"
                )
            self._read_a_copy()
        if not self.read_only and self._engine.name == "sqlite":
            # Only after the check: files of other programs are not changed.
            self._write_ahead()
        if version != schema_version():
            self._bring_up_to_date()

    def _write_ahead(self) -> None:
        """Let commits go to a log. SQLite does not wait here while others open a new file."""
        end = time.monotonic() + self._timeout
        with FORKS.use(), self._explained(), closing(self._engine.raw_connection()) as raw:
            while True:
                try:
                    raw.cursor().execute("PRAGMA journal_mode = WAL")
                    return
                except sqlite3.Error as error:
                    busy = getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY")
                    if not busy or time.monotonic() > end:
                        raise exc.DBAPIError("PRAGMA journal_mode", None, error) from error
                    time.sleep(_PAUSE)

    def _read_a_copy(self) -> None:
        """Go on with a copy of the file in memory, which can be migrated."""
        copy = sqlite3.connect(":memory:", check_same_thread=False)
        with FORKS.use(), self._explained(), closing(self._engine.raw_connection()) as raw:
            try:
                file: Any = raw.driver_connection
                file.backup(copy)
            except sqlite3.Error as error:
                raise exc.DBAPIError("backup", None, error) from error
        self._engine.dispose()
        FORKS.discard(self)
        self._use(sql.create_engine("sqlite://", creator=lambda: copy, poolclass=sql.StaticPool))

    def _bring_up_to_date(self) -> None:
        with self._changing() as connection:
            if self._engine.name == "postgresql":
                # Writers of SQLite exclude each other without this.
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_CREATION_LOCK})")
            # Another process may have done it since the check.
            version = self._stored_version(connection)
            if version is None:
                TABLES.create_all(connection)
                connection.execute(sql.insert(META), {"name": "schema", "value": ""})
            else:
                for statement in migration(version):
                    connection.execute(sql.text(statement))
            value = {"value": str(schema_version())}
            connection.execute(sql.update(META).where(META.c.name == "schema"), value)

    def _stored_version(self, connection: sql.Connection) -> int | None:
        """The schema found, or None in an empty database."""
        tables = set(sql.inspect(connection).get_table_names())
        if not tables:
            return None
        if not tables >= FIRST_TABLES:
            raise DatabaseError(f"database {self.name} holds other tables: name another database")
        if connection.dialect.name == "sqlite":
            # Triggers would run with every insertion.
            query = "SELECT count(*) FROM sqlite_schema WHERE type = 'trigger'"
            if connection.exec_driver_sql(query).scalar_one():
                raise DatabaseError(f"database {self.name} holds triggers: drop them to use it")
        stored = sql.select(META.c.value).where(META.c.name == "schema")
        version = str(connection.execute(stored).scalar_one_or_none())
        if not re.fullmatch("[1-9][0-9]{0,5}", version):
            raise DatabaseError(f"database {self.name} names no schema: use another one")
        if int(version) > schema_version():
            raise DatabaseError(
                f"database {self.name} has schema {version}, this version knows up to "
                f"{schema_version()}: update fastrun-toolkit or use another database"
            )
        if int(version) == schema_version() and not tables >= TABLES.tables.keys():
            raise DatabaseError(f"database {self.name} lacks tables of ours: use another one")
        return int(version)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except exc.IntegrityError:
            raise
        except UnicodeError as error:  # in names of the schema
            raise DatabaseError(f"database {self.name} {_ADVICE['SQLITE_CORRUPT']}") from error
        except exc.DBAPIError as error:
            name = getattr(error.orig, "sqlite_errorname", "")
            advice = (text for prefix, text in _ADVICE.items() if name.startswith(prefix))
            first = f"cannot be used: {str(error.orig).splitlines()[0]}"
            raise DatabaseError(f"database {self.name} {next(advice, first)}") from error


def _address(text: str) -> sql.URL:
    try:
        return sql.make_url(text) if "://" in text else sql.URL.create("sqlite", database=text)
    except (exc.ArgumentError, ValueError) as error:
        shown = re.sub("://.*@", "://***@", text)
        raise DatabaseError(
            f"not a database address: {shown!r:.200}; use a path or a URL"
        ) from error


def _file(address: sql.URL) -> Path | None:
    """The file of an SQLite address, unless it is in memory."""
    if address.get_backend_name() != "sqlite" or address.database in (None, "", ":memory:"):
        return None
    if "\0" in str(address.database):
        raise DatabaseError(f"no file can be called {address.database!r:.60}")
    try:
        return Path(str(address.database)).expanduser().absolute()
    except RuntimeError as error:
        raise DatabaseError(f"no file can be called {address.database!r:.60}: {error}") from error


def _size(path: Path) -> int:
    """The size of a file in bytes; 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:  # no file, or one that SQLite cannot open either
        return 0


def _writable(path: Path) -> bool:
    """Whether a file and its folder, for the log, may be written; True if there is no file."""
    return not os.path.exists(path) or (
        os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    )
