"""A store of reduced request logs: a folder of Parquet files, DuckDB over them, and the secret of their digests.

    STORE/store.json          schema, digest of the secret, share of texts that `fills` keeps
    STORE/secret.key          32 bytes; without it no one can try values against the digests
    STORE/parts/ID/           one intake: rows-*.parquet, its reductions, and part.json (what was read, skipped, missing); ID is
                              the digest of what it read, and a merge brings the parts of other stores here
    STORE/reduced/            the reductions of all parts together
    STORE/.lock               held by the one intake or merge that changes the store

Every reduction is a table of sums, minima and maxima of integers by a key. So reductions of parts add up to the reduction of
the whole, in any order, to the last bit; parts may be made on different machines that were given the same secret.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stillroom.core import files
from stillroom.core.errors import EnvironmentProblem, OutOfMemory, UsageError
from stillroom.core.extras import require
from stillroom.core.progress import say
from stillroom.guard.log_parts import Held, Relation, held_by, related

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SCHEMA = "stillroom.guard.store/1"
FILL_SAMPLE = 8
"""`fills` keeps the texts whose digest is divisible by this: an eighth of all different texts, the same ones in every part."""
DAY_US = 86_400_000_000
Column = npt.NDArray[Any]
Table = dict[str, Column]

COLUMNS: dict[str, str] = {
    "time_us": "BIGINT",
    "account": "UBIGINT",
    "request": "UBIGINT",
    "org": "UBIGINT",
    "key": "UBIGINT",
    "payment": "UBIGINT",
    "device": "UBIGINT",
    "ip24": "UBIGINT",
    "asn": "UBIGINT",
    "country": "UBIGINT",
    "ua": "UBIGINT",
    "end_user": "UBIGINT",
    "model": "UBIGINT",
    "tokens_in": "INTEGER",
    "tokens_out": "INTEGER",
    "choices": "SMALLINT",
    "temperature": "FLOAT",
    "logprobs": "TINYINT",
    "tools": "TINYINT",
    "stream": "TINYINT",
    "seeded": "TINYINT",
    "turns": "SMALLINT",
    "latency_ms": "INTEGER",
    "status": "SMALLINT",
    "skeleton": "UBIGINT",
    "fill": "UBIGINT",
    "cot": "TINYINT",
}
"""The canonical row. Digests are 0 and other values -1 where the log does not say."""
MOST: dict[str, int] = {
    "tokens_in": 2**31 - 1,
    "tokens_out": 2**31 - 1,
    "choices": 1_000,
    "temperature": 100,
    "logprobs": 1,
    "tools": 1,
    "stream": 1,
    "seeded": 1,
    "turns": 30_000,
    "latency_ms": 2**31 - 1,
    "status": 999,
    "cot": 1,
}
"""The greatest value of each column that holds neither a time nor a digest. Who sends requests can make a log hold any number:
a greater one is stored as this one, so that no number keeps a row from being read."""

KINDS = ("org", "payment", "device", "ip24", "asn", "country", "ua", "end_user")
"""Columns that say with whom an account shares something; `values.kind` is the index."""

_QUARTERS = ", ".join(
    f"count(*) FILTER (time_us // 21600000000 % 4 = {quarter})::BIGINT AS q{quarter}" for quarter in range(4)
)
# A request without text belongs to the stream of its parameters.
_SKELETON = (
    "CASE WHEN skeleton <> 0 THEN skeleton ELSE (1 + (choices + 1)::UBIGINT * 64 + (logprobs + 1)::UBIGINT * 16"
    " + (tools + 1)::UBIGINT * 4 + (seeded + 1)::UBIGINT) END"
)
REDUCTIONS: dict[str, tuple[str, str]] = {
    "streams": (
        f"SELECT account, (time_us // {DAY_US})::INTEGER AS day, {_SKELETON} AS skeleton, model, count(*)::BIGINT AS requests,"
        " sum(greatest(tokens_in, 0))::BIGINT AS tokens_in, sum(greatest(tokens_out, 0))::BIGINT AS tokens_out,"
        " count(*) FILTER (cot = 1)::BIGINT AS cot, count(*) FILTER (logprobs = 1)::BIGINT AS logprobs,"
        " count(*) FILTER (choices > 1)::BIGINT AS multiple, count(*) FILTER (turns = 1)::BIGINT AS single,"
        f" {_QUARTERS} FROM rows GROUP BY ALL",
        "SELECT account, day, skeleton, model, {sums} FROM all_parts GROUP BY ALL",
    ),
    "fills": (
        f"SELECT account, (time_us // {DAY_US})::INTEGER AS day, {_SKELETON} AS skeleton, fill, count(*)::BIGINT AS requests"
        f" FROM rows WHERE fill <> 0 AND fill % {FILL_SAMPLE} = 0 GROUP BY ALL",
        "SELECT account, day, skeleton, fill, sum(requests)::BIGINT AS requests FROM all_parts GROUP BY ALL",
    ),
    "values": (
        " UNION ALL ".join(
            f"SELECT {number}::TINYINT AS kind, {kind} AS value, account, count(*)::BIGINT AS requests,"
            f" min(time_us) AS first_us, max(time_us) AS last_us FROM rows WHERE {kind} <> 0 GROUP BY ALL"
            for number, kind in enumerate(KINDS)
        ),
        "SELECT kind, value, account, sum(requests)::BIGINT AS requests, min(first_us) AS first_us, max(last_us) AS last_us"
        " FROM all_parts GROUP BY ALL",
    ),
    "accounts": (
        "SELECT account, count(*)::BIGINT AS requests, min(time_us) AS first_us, max(time_us) AS last_us"
        " FROM rows GROUP BY ALL",
        "SELECT account, sum(requests)::BIGINT AS requests, min(first_us) AS first_us, max(last_us) AS last_us"
        " FROM all_parts GROUP BY ALL",
    ),
    "names": ("", "SELECT kind, value, min(name) AS name FROM all_parts GROUP BY ALL"),
}
"""By name: how it is made from rows, and how parts are added up."""
_SUMS = ("requests", "tokens_in", "tokens_out", "cot", "logprobs", "multiple", "single", "q0", "q1", "q2", "q3")


@dataclass(frozen=True)
class Store:
    """An open store.

    Attributes:
        path: Its folder.
        key: The secret of its digests.
    """

    path: Path
    key: bytes

    @property
    def reduced(self) -> Path:
        """The reductions of all parts together."""
        return self.path / "reduced"

    def parts(self) -> list[Path]:
        """The folders of whole parts, sorted."""
        found = (record.parent for record in self.path.glob("parts/*/part.json"))
        return sorted(part for part in found if not part.name.endswith(".partial"))

    def unmerged(self) -> list[Path]:
        """Parts that ``reduced`` does not hold: shares, or what an intake read that ended before its merge."""
        record = self.reduced / "reduced.json"
        held = set(files.read_json(record)["parts"]) if record.is_file() else set()
        return [part for part in self.parts() if part.name not in held]

    def digest(self) -> str:
        """What the store holds: of the parts' records (which hold the digests of what they read)."""
        return files.digest_json(sorted(files.digest_file(part / "part.json") for part in self.parts()))


def key_digest(key: bytes) -> str:
    """What may be known of a secret."""
    return hashlib.sha256(b"stillroom guard store\0" + key).hexdigest()


def create_store(path: Path, key_file: Path | None = None) -> Store:
    """Open a store, or make one.

    Args:
        path: Its folder.
        key_file: The secret of another store, so that both can be merged; None draws one for a new store.

    Raises:
        UsageError: The folder is something else, or the store has another secret.
    """
    given = _read_key(key_file) if key_file is not None else None
    if (path / "store.json").is_file():
        store = open_store(path)
        if given is not None and given != store.key:
            raise UsageError(
                f"{path}: this store has another secret than {key_file}.", "Name another store, or its own key."
            )
        return store
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} exists and is not a store of request logs.", "Name a new folder.")
    key = given or secrets.token_bytes(32)
    path.mkdir(parents=True, exist_ok=True)
    handle = os.open(path / "secret.key", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(key)
    files.write_json(path / "store.json", {"schema": SCHEMA, "key": key_digest(key), "fill_sample": FILL_SAMPLE})
    return Store(path, key)


def parts_of(path: Path) -> list[Path]:
    """The files and folders that a store consists of: another file in its folder is none of it."""
    return [path / name for name in ("store.json", "secret.key", "parts", "reduced", ".lock")]


def open_store(path: Path) -> Store:
    """Open a store that exists.

    Raises:
        UsageError: It is none, or its secret is missing or another one.
    """
    try:
        record = files.read_json(path / "store.json")
    except (OSError, ValueError):
        raise UsageError(
            f"{path} is not a store of request logs.", "Make one: stillroom guard intake LOGS... -o STORE."
        ) from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or record.get("fill_sample") != FILL_SAMPLE:
        raise UsageError(f"{path}: this store was written by another version.", "Make it again from the logs.")
    key = _read_key(path / "secret.key")
    if key_digest(key) != record.get("key"):
        raise UsageError(f"{path}: secret.key is not the secret that this store began with.", "Put the first one back.")
    return Store(path, key)


def _read_key(path: Path) -> bytes:
    try:
        key = files.read_at_most(path, 32)
    except OSError:
        key = None
    if key is None or len(key) != 32:
        raise UsageError(f"{path} is not a store's secret (32 bytes).", "Name the file secret.key of a store.")
    return key


@contextmanager
def locked(store: Store) -> Iterator[None]:
    """Hold the store for an intake or a merge; while another process holds it, say so and wait. One in the other is allowed."""
    from filelock import FileLock, Timeout

    # Who shares the folder by its group shares the lock.
    lock = FileLock(store.path.resolve() / ".lock", mode=0o660, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{store.path}: waiting for another intake or merge of this store to end.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def database(memory: str = "2GB", threads: int = 1, scratch: Path | None = None) -> Iterator[DuckDBPyConnection]:
    """DuckDB in memory, bounded, without extensions from elsewhere; what does not fit is spilled into ``scratch``.

    Raises:
        OutOfMemory: The bound is too small for the work.
        EnvironmentProblem: A table of the store is damaged or not there, or the disk is full.
    """
    require("guard", "Reading request logs needs packages that are not installed: {}.")
    import duckdb

    connection = None
    try:
        connection = duckdb.connect(
            config={
                "memory_limit": memory,
                "threads": threads,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "preserve_insertion_order": False,
            }
        )
        if scratch is not None:
            connection.execute(f"SET temp_directory = {quoted(str(scratch))}")
        yield connection
    except duckdb.OutOfMemoryException as error:
        raise OutOfMemory(
            f"{memory} of memory do not suffice for these logs ({_first_line(error)}).",
            "Give more (`--memory 4GB`), or read shares of the logs (`--shards 1/8`) where memory is short.",
        ) from None
    except (duckdb.IOException, duckdb.InvalidInputException) as error:
        raise EnvironmentProblem(
            f"A table of the store cannot be read or written: {_first_line(error)}.",
            "Free disk space; where a table is damaged, merge the parts again (`stillroom guard merge STORE`).",
        ) from None
    finally:
        if connection is not None:
            connection.close()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")[:300]


def quoted(text: str) -> str:
    """A string of SQL."""
    return "'" + text.replace("'", "''") + "'"


def _parquet(paths: list[Path]) -> str:
    return f"read_parquet([{', '.join(quoted(str(path)) for path in paths)}])"


def write_rows(connection: DuckDBPyConnection, table: Mapping[str, Column], path: Path) -> None:
    """Write columns of equal length as canonical rows."""
    connection.register("batch", dict(table))
    chosen = ", ".join(f"{name}::{kind} AS {name}" for name, kind in COLUMNS.items())
    connection.execute(f"COPY (SELECT {chosen} FROM batch) TO {quoted(str(path))} (FORMAT parquet, COMPRESSION zstd)")
    connection.unregister("batch")


def write_names(connection: DuckDBPyConnection, names: Mapping[tuple[str, int], str], path: Path) -> None:
    """Write what digests of accounts, models and (where asked for) skeletons stand for."""
    table: Table = {
        "kind": np.array([kind for kind, _ in names], dtype=object),
        "value": np.array([value for _, value in names], dtype=np.uint64),
        "name": np.array(list(names.values()), dtype=object),
    }
    if not names:
        connection.execute("CREATE OR REPLACE TEMP TABLE no_names (kind VARCHAR, value UBIGINT, name VARCHAR)")
    else:
        connection.register("batch", table)
    source = "batch" if names else "no_names"
    connection.execute(
        f"COPY (SELECT kind::VARCHAR AS kind, value::UBIGINT AS value, name::VARCHAR AS name FROM {source} ORDER BY ALL)"
        f" TO {quoted(str(path))} (FORMAT parquet)"
    )


def reduce_part(connection: DuckDBPyConnection, folder: Path) -> tuple[int, int, int]:
    """Make a part's reductions from its rows.

    Returns:
        How many rows it has, and their first and last time in microseconds since 1970 (0 and 0 where it has none).
    """
    rows = sorted(folder.glob("rows-*.parquet"))
    connection.execute(f"CREATE OR REPLACE TEMP VIEW rows AS SELECT * FROM {_parquet(rows)}")
    for name, (sql, _) in REDUCTIONS.items():
        if sql:
            connection.execute(
                f"COPY ({sql}) TO {quoted(str(folder / f'{name}.parquet'))} (FORMAT parquet, COMPRESSION zstd)"
            )
    found = connection.execute(
        "SELECT count(*), coalesce(min(time_us), 0), coalesce(max(time_us), 0) FROM rows"
    ).fetchone()
    return (int(found[0]), int(found[1]), int(found[2])) if found else (0, 0, 0)


def merge(stores: list[Store], into: Store, memory: str = "2GB", threads: int = 1) -> dict[str, Any]:
    """Bring the parts of stores into one store, and add them up in its ``reduced``.

    The parts are the store's own from then on: later intakes add to them, and :meth:`Store.digest` covers them.

    Returns:
        The record that is written beside the reductions: parts, rows and a digest of every table's content.

    Raises:
        UsageError: A store has another secret, two parts hold lines of one log, or no store has a part.
    """
    for store in stores:
        if store.key != into.key:
            raise UsageError(
                f"{store.path}: its digests were made under another secret than those of {into.path}.",
                "Give the stores one secret at intake: --key-file STORE/secret.key.",
            )
    with locked(into):
        return _merged(stores, into, memory, threads)


def _merged(stores: list[Store], into: Store, memory: str, threads: int) -> dict[str, Any]:
    """As :func:`merge`, under the lock."""
    # The same logs may be in two of the stores: a part's name is the digest of what it read.
    parts = {part.name: part for store in [*stores, into] for part in store.parts()}
    if not parts:
        raise UsageError(
            f"{into.path}: no part was read yet.", "Read logs first: stillroom guard intake LOGS... -o STORE."
        )
    with database(memory, threads, into.path / "scratch") as connection:
        _require_apart(parts.values(), connection)
        for name, part in parts.items():
            parts[name] = _brought(part, into)
        record: dict[str, Any] = {"schema": "stillroom.guard.reduced/1", "parts": sorted(parts), "tables": {}}
        record["rows"] = sum(int(files.read_json(part / "part.json")["rows"]) for part in parts.values())
        with files.replacing(into.reduced) as folder:
            folder.mkdir()
            for name, (_, sql) in REDUCTIONS.items():
                sources = [parts[part] / f"{name}.parquet" for part in sorted(parts)]
                connection.execute(f"CREATE OR REPLACE TEMP VIEW all_parts AS SELECT * FROM {_parquet(sources)}")
                made = sql.format(sums=", ".join(f"sum({column})::BIGINT AS {column}" for column in _SUMS))
                connection.execute(
                    f"COPY ({made}) TO {quoted(str(folder / f'{name}.parquet'))} (FORMAT parquet, COMPRESSION zstd)"
                )
                record["tables"][name] = _content(connection, folder / f"{name}.parquet")
            files.write_json(folder / "reduced.json", record)
    return record


def _brought(part: Path, into: Store) -> Path:
    """A part as one of the store's own: hard links where both are on one file system (no file of a part ever changes)."""
    own = into.path / "parts" / part.name
    if not (own / "part.json").is_file():
        with files.replacing(own) as beside:
            shutil.copytree(part, beside, copy_function=_link_or_copy)
    return own


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _require_apart(parts: Iterable[Path], connection: DuckDBPyConnection) -> None:
    """Refuse parts that were read in different company and hold lines of the same log: they would count twice.

    Raises:
        UsageError: Two parts hold lines of one log.
    """
    entries = [(part, held) for part in parts for held in held_by(part)]
    for one, other, held, found in overlapping(connection, entries, entries):
        if found == "same":
            raise UsageError(
                f"{other} and {one} hold the same log (SHA-256 {held.sha256[:16]}…): it would count twice.",
                "Make one of the stores again without that log.",
            )
        if found == "shares":
            raise UsageError(
                f"{other} and {one} hold shares of one log that do not fit together: it was read whole as well, in another "
                "number of shares, or had another size.",
                "Make the stores of that log again, all from the same file and with the same number of shares.",
            )
        raise UsageError(
            f"{other} and {one} hold the same beginning of one log, which was read again after it had grown: it would "
            "count twice.",
            "Make one of the stores again without that log.",
        )


def overlapping(
    connection: DuckDBPyConnection, ones: Iterable[tuple[Path, Held]], others: Iterable[tuple[Path, Held]]
) -> Iterator[tuple[Path, Path, Held, Relation]]:
    """Pairs of :func:`related`; of those that are perhaps of one log, the ones whose rows say so."""
    apart: set[frozenset[Path]] = set()
    for one, other, held, found in related(ones, others):
        pair = frozenset((one, other))
        if found == "perhaps" and (pair in apart or not _rows_in_common(connection, one, other)):
            apart.add(pair)
            continue
        yield one, other, held, found


def _rows_in_common(connection: DuckDBPyConnection, one: Path, other: Path) -> int:
    """How many different rows two parts both hold."""
    both = " INTERSECT ".join(
        f"SELECT {', '.join(COLUMNS)} FROM {_parquet(sorted(part.glob('rows-*.parquet')))}" for part in (one, other)
    )
    found = connection.execute(f"SELECT count(*) FROM ({both})").fetchone()
    return int(found[0]) if found else 0


def _content(connection: DuckDBPyConnection, path: Path) -> dict[str, Any]:
    """Rows of a table and the sum of their hashes, which no order of rows changes."""
    found = connection.execute(f"SELECT count(*), sum(hash(COLUMNS(*))::HUGEINT) FROM {_parquet([path])}").fetchone()
    columns = [int(value or 0) for value in (found or (0,))]
    whole = connection.execute(f"SELECT sum(hash(t)::HUGEINT) FROM (SELECT * FROM {_parquet([path])}) t").fetchone()
    return {"rows": columns[0], "content": files.digest_json([*map(str, columns), str(whole[0] if whole else 0)])[:32]}


def load(store: Store, connection: DuckDBPyConnection, sql: str) -> Table:
    """Columns of a query in which ``{streams}``, ``{fills}`` and so on stand for the reduced tables.

    Raises:
        UsageError: The store was not merged yet, or has parts that were not: without them requests are missing.
    """
    todo = f"Merge them: stillroom guard merge {store.path}."
    if not (store.reduced / "reduced.json").is_file():
        raise UsageError(f"{store.path}: its parts are not merged.", todo)
    if missing := store.unmerged():
        raise UsageError(
            f"{store.path}: {len(missing)} of its {len(store.parts())} parts are not merged: they are shares, or an intake "
            "was interrupted or is at work.",
            todo,
        )
    tables = {name: _parquet([store.reduced / f"{name}.parquet"]) for name in REDUCTIONS}
    return {name: np.asarray(column) for name, column in connection.execute(sql.format(**tables)).fetchnumpy().items()}
