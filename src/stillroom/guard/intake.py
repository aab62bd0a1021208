"""Reads request logs of any size and any content into a store.

Lines come from outside, and what is in them was chosen by those who are being looked for. A line can be huge, nested, not UTF-8
or not JSON: it is counted under a reason, and the next one is read. Memory is bounded by the longest line that is taken and
one batch.

Each line counts once, however often its log is given. A last line without an end may still be half a line: it waits, unless
it is a whole JSON object, which nothing can make longer.
"""

from __future__ import annotations

import contextlib
import datetime
import gzip
import hashlib
import ipaddress
import shutil
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from stillroom.core import files
from stillroom.core.errors import UsageError
from stillroom.core.strict_json import NotStrict, read_strict
from stillroom.guard.intake_formats import EARLIEST, FORMATS, LATEST, LINES, OBJECTS, Row, recognise
from stillroom.guard.intake_text import Redactor, printable
from stillroom.guard.log_parts import (
    LENGTHS,
    PARQUET,
    SURE,
    Held,
    Share,
    agree,
    beginning_of,
    fit,
    held_by,
    name_of,
)
from stillroom.guard.log_store import (
    COLUMNS,
    MOST,
    REDUCTIONS,
    Store,
    database,
    locked,
    merge,
    overlapping,
    quoted,
    reduce_part,
    write_names,
    write_rows,
)

LINE_BYTES = 4 << 20
"""Longest line that is read."""
AROUND = "\r\n\0 \ufeff"
"""What is not a part of a line at its ends; some programs begin a file with a byte order mark."""
BATCH = 200_000
NO_ACCOUNT = "names no account (see --account)"
NO_TIME = "has no time that can be read"
OUT_OF_RANGE = "a number greater than its column holds, or less than -1"
MISSING_NAMES = {
    "payment": "payment",
    "device": "device",
    "ip24": "address",
    "asn": "network (ASN)",
    "ua": "user agent",
    "org": "organisation",
    "end_user": "end user",
    "model": "model",
    "tokens_out": "tokens",
    "logprobs": "logprobs",
    "turns": "turns",
    "skeleton": "text",
}
"""What the report says is missing, by column."""


@dataclass
class Report:
    """What an intake read.

    Attributes:
        rows: Rows taken.
        skipped: Lines not taken, by reason.
        repaired: Lines taken after something was replaced or left out, by reason.
        missing: Share of rows without a value, by what is missing.
        formats: Rows by format.
        span: Dates (UTC) of the first and the last row taken; empty where none was.
        already: Lines (or rows of Parquet) that the store holds from an earlier reading, and that were not counted again.
        waiting: Logs whose last line has no end yet, and its bytes: it was not read.
        read: By log: what of it the store holds now. It is how a log is known again, also one that has grown since.
        known: All of it was in the store already, and nothing was read twice.
    """

    rows: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    missing: dict[str, float] = field(default_factory=dict)
    formats: Counter[str] = field(default_factory=Counter)
    span: tuple[str, str] | tuple[()] = ()
    already: int = 0
    waiting: list[tuple[Path, int]] = field(default_factory=list)
    read: list[Held] = field(default_factory=list)
    part: str = ""
    known: bool = False

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "schema": "stillroom.guard.part/1",
            "part": self.part,
            "rows": self.rows,
            "span": list(self.span),
            "skipped": dict(sorted(self.skipped.items())),
            "repaired": dict(sorted(self.repaired.items())),
            "missing": self.missing,
            "formats": dict(sorted(self.formats.items())),
            "read": [held.record() for held in self.read],
        }


class _Batches:
    """Columns of rows, written when there are enough of them."""

    def __init__(self, connection: Any, folder: Path) -> None:
        self.connection = connection
        self.folder = folder
        self.columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self.written = 0
        self.rows = 0
        self.present: Counter[str] = Counter()

    def flush(self, last: bool = False) -> None:
        count = len(self.columns["time_us"])
        if count or (last and not self.written):
            types = {"UBIGINT": np.uint64, "FLOAT": np.float32}
            table = {
                name: np.array(values, types.get(COLUMNS[name], np.int64)) for name, values in self.columns.items()
            }
            write_rows(self.connection, table, self.folder / f"rows-{self.written:05d}.parquet")
            for name in MISSING_NAMES:
                self.present[name] += int((table[name] != _absent(name)).sum())
            self.written += 1
            self.rows += count
            self.columns = {name: [] for name in COLUMNS}


def intake(
    logs: list[Path],
    store: Store,
    *,
    form: str = "auto",
    account: str | None = None,
    shard: Share = (0, 1),
    keep_skeletons: bool = False,
    line_bytes: int = LINE_BYTES,
    memory: str = "2GB",
    threads: int = 1,
) -> Report:
    """Read logs into a store as one part; without shards, bring its reductions up to date too.

    What the store holds already is not read again: a log is known by its lines, whatever its name, and one that has grown is
    read from where it ended.

    Args:
        logs: Files, plain or gzip; Parquet of canonical rows where ``form`` is ``parquet``.
        store: The store.
        form: One of :data:`FORMATS`; ``auto`` recognises JSON formats line by line, and access logs.
        account: The account of rows that name none (a batch file of one customer, for instance).
        shard: Which share of the bytes to read: number from 0, of how many. Every line is in exactly one.
        keep_skeletons: Keep the masked beginnings of texts too, so that a person can read them in a case.
        line_bytes: Longest line that is taken.
        memory: What DuckDB may take.
        threads: Of DuckDB.

    Raises:
        UsageError: A file is missing, the format is unknown, not one row was understood, or a log would count twice.
    """
    if form not in FORMATS:
        raise UsageError(f"--format {printable(form)}: unknown.", f"One of: {', '.join(FORMATS)}.")
    for path in logs:
        if not path.is_file():
            raise UsageError(f"{path} is not a file.", "Name log files: JSON lines, access logs, or .gz of these.")
        if form != "parquet":
            with open(path, "rb") as begun:
                if begun.read(4) == b"PAR1":
                    raise UsageError(f"{path} is Parquet.", "Canonical rows are read with --format parquet.")
    report = Report()
    with locked(store):
        # What a killed intake was writing.
        files.remove_leftovers(store.path / "parts")
        held = [(part, each) for part in store.parts() for each in held_by(part)]
        work = store.path / "parts" / "reading.partial"
        work.mkdir(parents=True)
        try:
            with database(memory, threads, store.path / "scratch") as connection:
                if form == "parquet":
                    report.part = _parquet(logs, connection, work, report, shard, _known(held))
                else:
                    reader = _Reader(
                        store, report, form, account, keep_skeletons, line_bytes, [each for _, each in held]
                    )
                    report.part = reader.read(logs, _Batches(connection, work), shard)
                    write_names(connection, reader.names, work / "names.parquet")
                target = store.path / "parts" / report.part
                report.known = bool(report.already and not report.read) or (target / "part.json").is_file()
                if not report.known:
                    report.rows, first, last = reduce_part(connection, work)
                    if report.rows:
                        report.span = (_date(first), _date(last))
                    _require_new(report, work, held, connection)
            if not report.known:
                if not report.rows and shard[1] == 1 and not report.already:
                    raise _nothing(report)
                files.write_json(work / "part.json", report.record())
                shutil.rmtree(target, ignore_errors=True)
                work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        # What was known may have been read by an intake that ended before its merge.
        if shard[1] == 1 and (not report.known or store.unmerged()):
            merge([], store, memory, threads)
    return report


def _nothing(report: Report) -> UsageError:
    """Why there is no row."""
    if report.waiting and not report.skipped:
        path, size = report.waiting[0]
        return UsageError(
            f"{path} is one line without an end so far ({size:,} bytes): it may still be half a line.",
            "Read it again when the line has its end. Where the log is finished, add the end of the line: echo >> LOG.",
        )
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in report.skipped.most_common(4))
    return UsageError(f"No row was understood ({reasons or 'the files are empty'}).", "Name the format: --format.")


def _require_new(report: Report, work: Path, held: list[tuple[Path, Held]], connection: Any) -> None:
    """Refuse what was read where a part of the store holds some of the same requests from a longer or changed form of the log.

    Raises:
        UsageError: It does.
    """
    for _, _, its, found in overlapping(connection, [(work, each) for each in report.read], held):
        if found == "perhaps":
            raise UsageError(
                f"{its.path} begins as a log that the store holds, then differs from it or ends before it, and has some of the "
                "same requests: they would count twice.",
                "Leave out older and changed copies of logs, or make the store again.",
            )


Known = dict[int, set[str]]
"""Digests of what a store holds, by how many lines they are of."""


def _known(held: Iterable[tuple[Path, Held]]) -> Known:
    found: Known = {}
    for _, each in held:
        for lines, name in each.known_as():
            found.setdefault(lines, set()).add(name)
    return found


def _parquet(logs: list[Path], connection: Any, work: Path, report: Report, shard: Share, known: Known) -> str:
    """Take canonical rows as they are; a column that is not there is missing in all of them."""
    import duckdb

    digest = hashlib.sha256(f"{shard}".encode())
    for number, path in enumerate(logs):
        content = files.digest_file(path)
        whole = content if shard[1] == 1 else hashlib.sha256(f"{shard} {content}".encode()).hexdigest()
        try:
            if whole in known.get(PARQUET, ()):
                held = connection.execute(f"SELECT count(*) FROM read_parquet({quoted(str(path))})").fetchone()
                report.already += int(held[0])
                continue
            digest.update(content.encode())
            known.setdefault(PARQUET, set()).add(whole)
            report.read.append(Held(PARQUET, whole))
            have = {
                row[0]
                for row in connection.execute(f"DESCRIBE SELECT * FROM read_parquet({quoted(str(path))})").fetchall()
            }
            if not {"time_us", "account"} <= have:
                raise UsageError(
                    f"{path} has no columns `time_us` and `account`.", "See docs/guard-logs.md for the columns."
                )
            # A row without an account belongs to the first share.
            shared = f"read_parquet({quoted(str(path))}) WHERE coalesce(account, 0) % {shard[1]} = {shard[0]}"
            told = f"coalesce(account, 0) <> 0 AND coalesce(time_us, 0) BETWEEN {EARLIEST}000000 AND {LATEST}000000"
            held = {name: f"coalesce({name}, {_absent(name)})" for name in COLUMNS if name in have}
            beyond = " OR ".join(
                f"{held[name]} NOT BETWEEN -1 AND {most}" for name, most in MOST.items() if name in held
            )
            _count(connection, report, shared, told, beyond)
            for name, most in MOST.items():
                if name in held:
                    held[name] = f"least(greatest({held[name]}, -1), {most})"
            chosen = ", ".join(
                f"({held.get(name, str(_absent(name)))})::{kind} AS {name}" for name, kind in COLUMNS.items()
            )
            connection.execute(
                f"COPY (SELECT {chosen} FROM {shared} AND {told}) TO {quoted(str(work / f'rows-{number:05d}.parquet'))}"
                " (FORMAT parquet, COMPRESSION zstd)"
            )
        except duckdb.Error as error:
            reason = printable(str(error).split("\n")[0], 200)
            raise UsageError(f"{path}: not canonical rows: {reason}", "Write the file again.") from None
    if not report.read:
        return digest.hexdigest()[:32]
    write_names(connection, {}, work / "names.parquet")
    counted = ", ".join(f"count(*) FILTER ({name} <> {_absent(name)})" for name in MISSING_NAMES)
    found = connection.execute(
        f"SELECT count(*), {counted} FROM read_parquet({quoted(str(work / 'rows-*.parquet'))})"
    ).fetchone()
    report.missing = {
        words: round(1 - present / max(1, found[0]), 4)
        for words, present in zip(MISSING_NAMES.values(), found[1:], strict=True)
        if present < found[0]
    }
    report.formats["parquet"] = found[0]
    return digest.hexdigest()[:32]


def _count(connection: Any, report: Report, rows: str, told: str, beyond: str) -> None:
    """Count the rows of a Parquet file that are not taken, and those of which a number is replaced.

    Args:
        connection: DuckDB.
        report: Where they are counted.
        rows: SQL after FROM, with a condition.
        told: SQL of whether a row has an account and a time.
        beyond: SQL of whether a number is outside its column's range; empty where the file has none of these columns.
    """
    found = connection.execute(
        f"SELECT count(*) FILTER (coalesce(account, 0) = 0), count(*) FILTER (coalesce(account, 0) <> 0 AND NOT ({told})),"
        f" count(*) FILTER (({told}) AND ({beyond or 'false'})) FROM {rows}"
    ).fetchone()
    for counts, reason, count in zip(
        (report.skipped, report.skipped, report.repaired), (NO_ACCOUNT, NO_TIME, OUT_OF_RANGE), found, strict=True
    ):
        if count:
            counts[reason] += count


@dataclass(frozen=True)
class _Log:
    """A log as it is now; it may grow while it is read.

    Attributes:
        path: The file.
        zipped: Whether it is compressed, whatever its name.
        size: Its bytes.
        share: Which share of it is read; None for the whole.
        beginning: Digests of its first bytes, as in :class:`Held`.
    """

    path: Path
    zipped: bool
    size: int
    share: Share | None
    beginning: dict[int, str]

    @classmethod
    def of(cls, path: Path, number: int, shard: Share) -> _Log | None:
        """The log, or its share; None where it is compressed, and belongs to another share: it is never divided."""
        with open(path, "rb") as begun:
            zipped = begun.read(2) == b"\x1f\x8b"
        if zipped and number % shard[1] != shard[0]:
            return None
        share = None if zipped or shard[1] == 1 else shard
        first = b""
        with _opened(path, zipped) as stream, contextlib.suppress(*DAMAGED):
            first = stream.read(LENGTHS[-1])
        return cls(path, zipped, path.stat().st_size, share, beginning_of(first))

    def held(self, lines: int, sha256: str, after: int, ended: tuple[int, str] | None) -> Held:
        """What a part's record says of it."""
        return Held(lines, sha256, after, self.share, self.size if self.share else 0, self.beginning, ended, self.path)


DAMAGED = (OSError, EOFError, ValueError, zlib.error)
"""What reading a damaged gzip file raises."""


def _opened(path: Path, zipped: bool) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb") if zipped else open(path, "rb"))


class _Reader:
    """Turns lines into rows."""

    def __init__(
        self,
        store: Store,
        report: Report,
        form: str,
        account: str | None,
        keep_skeletons: bool,
        line_bytes: int,
        held: list[Held],
    ) -> None:
        self.redactor = Redactor(store.key)
        self.report = report
        self.form = form
        self.account = account
        self.keep_skeletons = keep_skeletons
        self.line_bytes = line_bytes
        self.held = held
        self.known = _known((store.path, each) for each in held)
        self.names: dict[tuple[str, int], str] = {}

    def read(self, logs: list[Path], batches: _Batches, shard: Share) -> str:
        """Read all lines of a shard.

        Returns:
            The digest of what was read, which names the part.

        Raises:
            UsageError: A log would count twice.
        """
        digest = hashlib.sha256(f"{self.form} {self.account} {self.keep_skeletons}".encode())
        if shard[1] > 1:
            # Two shares may hold equal lines.
            digest.update(f" {shard[0]}/{shard[1]}".encode())
        for number, path in enumerate(logs):
            log = _Log.of(path, number, shard)
            if log is None:
                continue
            self._require_fitting(log)
            held, prefix = self._held(log) if self.known else (0, "")
            self.report.already += held
            if held:
                # What follows may equal what came before.
                digest.update(f"after {held} {prefix}\n".encode())
            content, count, ended = hashlib.sha256(), 0, None
            for line in self._lines(log):
                if count >= held:
                    if not line.endswith(b"\n"):
                        if not self._is_whole(line):
                            self.report.waiting.append((path, len(line)))
                            break
                        ended = (count, content.hexdigest()) if count else None
                    digest.update(line)
                    row = self._row(line)
                    if row is not None:
                        self._add(row, batches)
                count += 1
                content.update(_whole_line(line))
            if count > held:
                made = log.held(count, content.hexdigest(), held, ended)
                self.report.read.append(made)
                self.held.append(made)
                for lines, name in made.known_as():
                    self.known.setdefault(lines, set()).add(name)
        batches.flush(last=True)
        self.report.missing = {
            words: round(1 - batches.present[name] / max(1, batches.rows), 4)
            for name, words in MISSING_NAMES.items()
            if batches.present[name] < batches.rows
        }
        return digest.hexdigest()[:32]

    def _require_fitting(self, log: _Log) -> None:
        """Refuse shares of a log that grows, and a log that is known divided in another way: the borders of shares are bytes.

        Raises:
            UsageError: It is one of these.
        """
        given = log.held(0, "", 0, None)
        for known in self.held:
            if (log.share is None and known.share is None) or agree(known, given) < SURE or fit(known, given):
                continue
            if known.share is None:
                how = "whole"
            elif log.share is not None and known.share[1] == log.share[1]:
                how = f"in shares when it had {known.size:,} bytes (now {log.size:,})"
            else:
                how = f"in {known.share[1]} shares"
            raise UsageError(
                f"{log.path}: this log was read {how}; now its lines would count twice, or be lost.",
                "Read it as before, with what came since as a file of its own; or make the store again.",
            )
        if log.share is not None and (size := self._unended(log.path)):
            raise UsageError(
                f"{log.path}: its last line has no end ({size:,} bytes), so the log may grow, and its shares would not fit.",
                "Read it without --shards, or when it is finished; then add the end of the line: echo >> LOG.",
            )

    def _unended(self, path: Path) -> int:
        """Bytes of a plain file's last line, where that has no end and may be half a line; 0 otherwise."""
        with open(path, "rb") as stream:
            stream.seek(max(0, path.stat().st_size - self.line_bytes))
            last = stream.read(self.line_bytes).rpartition(b"\n")[2]
        return len(last) if last.strip() and not self._is_whole(last) else 0

    def _is_whole(self, line: bytes) -> bool:
        """Whether a line without an end is a whole one: a JSON object is, and nothing else can be told from half a line."""
        if self.form in LINES:
            return False
        text = line.decode("utf-8", "replace").strip(AROUND)
        try:
            return isinstance(read_strict(text.encode(), key_twice=True), dict)
        except (NotStrict, RecursionError):
            return False

    def _held(self, log: _Log) -> tuple[int, str]:
        """How many of a log's first lines are in the store, and their digest."""
        content, held, prefix = hashlib.sha256(), 0, ""
        skipped = Counter(self.report.skipped)
        for count, line in enumerate(self._lines(log), 1):
            content.update(_whole_line(line))
            if known := self.known.get(count):
                found = content.hexdigest()
                # Older versions recorded no share.
                if found in known or name_of(found, log.share) in known:
                    held, prefix = count, found
        self.report.skipped = skipped  # they are counted when the lines are read
        return held, prefix

    def _lines(self, log: _Log) -> Iterator[bytes]:
        """The lines that begin inside a share of a file."""
        begin, end = 0, 1 << 62
        if not log.zipped:
            number, shares = log.share or (0, 1)
            begin, end = log.size * number // shares, log.size * (number + 1) // shares
        with _opened(log.path, log.zipped) as stream:
            if begin:
                # The line that is being written at the border belongs to the share in which it begins.
                stream.seek(begin - 1)
                self._skip(stream)
            while True:
                if not log.zipped and stream.tell() >= end:
                    return
                try:
                    line = stream.readline(self.line_bytes + 1)
                    if len(line) > self.line_bytes and not line.endswith(b"\n"):
                        self._skip(stream)
                        self.report.skipped[f"longer than {self.line_bytes:,} bytes"] += 1
                        continue
                except DAMAGED as error:
                    if not log.zipped:
                        raise
                    self.report.skipped[f"the rest of a damaged gzip file ({type(error).__name__})"] += 1
                    return
                if not line:
                    return
                if line.strip():
                    yield line

    def _skip(self, stream: IO[bytes]) -> None:
        """Go past the next end of a line."""
        while True:
            piece = stream.readline(self.line_bytes)
            if not piece or piece.endswith(b"\n"):
                return

    def _row(self, line: bytes) -> Row | None:
        """The row of a line; None, counted, where there is none."""
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            # Left out, such a line would be a way not to be seen.
            text = line.decode("utf-8", "replace")
            self.report.repaired["not UTF-8: bytes replaced"] += 1
        text = text.strip(AROUND)
        try:
            if self.form in LINES or (self.form == "auto" and not text.startswith(("{", "["))):
                return self._access(text)
            record = read_strict(text.encode("utf-8", "replace"), key_twice=True)
            if not isinstance(record, dict):
                self.report.skipped["JSON, but not an object"] += 1
                return None
            form = recognise(record) if self.form == "auto" else self.form
            row = OBJECTS[form](record)
        except NotStrict as error:
            reason = {"depth": "nested too deeply", "number": "a number that is none"}.get(error.kind, "not JSON")
            self.report.skipped[reason] += 1
            return None
        except (RecursionError, OverflowError, ValueError, TypeError, KeyError, AttributeError) as error:
            self.report.skipped[f"values of another form than the format's ({type(error).__name__})"] += 1
            return None
        self.report.formats[form] += 1
        return row

    def _access(self, text: str) -> Row | None:
        for form, read in LINES.items():
            if self.form in ("auto", form):
                row = read(text)
                if row is not None:
                    self.report.formats[form] += 1
                    return row
        self.report.skipped["not a request (neither JSON nor an access log's line)"] += 1
        return None

    def _add(self, row: Row, batches: _Batches) -> bool:
        """Make the values digests. Returns whether the row was taken."""
        account = row.account or row.key or self.account or row.org
        if account is None:
            self.report.skipped[NO_ACCOUNT] += 1
            return False
        if row.time_us is None:
            self.report.skipped[NO_TIME] += 1
            return False
        value = self.redactor.value

        def digest(kind: str, text: str | None) -> int:
            return value(kind, text[:1000]) if text else 0

        named = value("account", account[:1000])
        # A key is never kept in clear, also where it is the only name of an account.
        shown = printable(account) if row.account is not None and row.account != row.key else f"key {named:016x}"
        self.names.setdefault(("account", named), shown if row.account or not row.key else f"key {named:016x}")
        model = digest("model", row.model)
        if row.model:
            self.names.setdefault(("model", model), printable(row.model))
        skeleton = fill = 0
        cot = -1
        if row.user is not None or row.system is not None:
            reduced = self.redactor.text(row.system or "", row.user or "")
            skeleton, fill, cot = reduced.skeleton, reduced.fill, int(reduced.cot)
            if self.keep_skeletons and len(self.names) < 2_000_000:
                self.names.setdefault(("skeleton", skeleton), printable(reduced.masked, 160))
        made: dict[str, float] = {
            "time_us": row.time_us,
            "account": named,
            "request": digest("request", row.request),
            "org": digest("org", row.org),
            "key": digest("key", row.key),
            "payment": digest("payment", row.payment),
            "device": digest("device", row.device),
            "ip24": digest("ip24", network(row.ip)),
            "asn": digest("asn", row.asn),
            "country": digest("country", row.country),
            "ua": digest("ua", row.ua),
            "end_user": digest("end_user", row.end_user),
            "model": model,
            "tokens_in": _or_absent(row.tokens_in),
            "tokens_out": _or_absent(row.tokens_out),
            "choices": _or_absent(row.choices),
            "temperature": -1.0 if row.temperature is None else row.temperature,
            "logprobs": _or_absent(row.logprobs),
            "tools": _or_absent(row.tools),
            "stream": _or_absent(row.stream),
            "seeded": _or_absent(row.seeded),
            "turns": _or_absent(row.turns),
            "latency_ms": _or_absent(row.latency_ms),
            "status": _or_absent(row.status),
            "skeleton": skeleton,
            "fill": fill,
            "cot": cot,
        }
        greater = [name for name, most in MOST.items() if made[name] > most]
        if greater:
            self.report.repaired[OUT_OF_RANGE] += 1
            made |= {name: MOST[name] for name in greater}
        for name, column in batches.columns.items():
            column.append(made[name])
        if len(batches.columns["time_us"]) >= BATCH:
            batches.flush()
        return True


def _whole_line(line: bytes) -> bytes:
    return line.rstrip(b"\r\n") + b"\n"


def _date(time_us: int) -> str:
    return datetime.datetime.fromtimestamp(time_us / 1e6, datetime.UTC).date().isoformat()


def _absent(column: str) -> int:
    """What a column holds where the log does not say."""
    return 0 if COLUMNS[column] == "UBIGINT" else -1


def _or_absent(value: int | None) -> int:
    return -1 if value is None else int(value)


def network(ip: str | None) -> str | None:
    """The /24 of an IPv4 address or the /48 of an IPv6 address; None for what is no address."""
    if not ip:
        return None
    text = ip.strip().strip("[]")
    quads = text.split(".")
    if len(quads) == 4 and all(quad.isdecimal() and len(quad) <= 3 for quad in quads):
        return ".".join(quads[:3])
    try:
        found = ipaddress.ip_address(text.split("%")[0][:64])
    except ValueError:
        return None
    return str(ipaddress.ip_network((found, 24 if found.version == 4 else 48), strict=False))


__all__ = ["BATCH", "LINE_BYTES", "REDUCTIONS", "Report", "intake", "network"]
