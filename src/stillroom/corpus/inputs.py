"""Files of a source: which are taken and which are passed over, and how they are opened, packed or not."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import os
import stat
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import IO, Any

from stillroom.core.errors import CorpusError, NotWritable, StillroomError, translate
from stillroom.core.patterns import PACKED, divided, matcher, unpacked_name
from stillroom.corpus.documents import LONGEST
from stillroom.corpus.tally import Tally

OTHER_ARCHIVES = (".zip", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".lz4", ".br")
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks, longer ones first, and the encodings that they mark."""
LONGEST_MARK = 4
"""Bytes of the longest byte order mark."""
MAGIC = (
    (b"%PDF-", "a PDF file"),
    (b"PK\x03\x04", "a ZIP file (DOCX, EPUB and XLSX are ZIP files)"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"PAR1", "a Parquet file"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"{\\rtf", "an RTF file"),
    (b"\xd0\xcf\x11\xe0", "an old Office file"),
)
"""How files begin that are no text."""


def find_files(
    path: Path, patterns: tuple[str, ...], check: str = "`path`", tally: Tally | None = None
) -> Iterator[Path]:
    """The files of a source in the order of their names, one at a time.

    Args:
        path: A file, a folder, or a pattern with ``*``, ``?`` or ``[``.
        patterns: Which files of a folder are taken, in either case; they may end in ``.gz`` and ``.zst`` besides.
        check: The keys to check where nothing fits.
        tally: Counts files that are taken and passed over.

    Raises:
        CorpusError: Nothing is there, or nothing fits.
        NotWritable: A folder may not be read.
    """
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        if (parts := divided(path)) is not None:
            yield from _globbed(path, *parts, patterns, tally)
            return
        raise CorpusError(
            f"{path}: no such file or folder.", "Check `path`; relative paths start at the recipe's folder."
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError:
        raise CorpusError(f"{str(path)!r}: no name that a file can have.", "Check `path`.") from None
    if not stat.S_ISDIR(kind) and not stat.S_ISREG(kind):
        # It would be waited for, and what is read from it is gone.
        raise CorpusError(f"{path}: neither a file nor a folder.", "Save what it gives in a file, and name that.")
    if not stat.S_ISDIR(kind):
        if tally is not None:
            tally.files += 1
        yield path
        return
    yield from _chosen(path, patterns, f"Check {check}", tally)


def _globbed(path: Path, base: Path, own: str, patterns: tuple[str, ...], tally: Tally | None) -> Iterator[Path]:
    """What a pattern ``own`` in ``path`` names: files, and folders with the files in them that ``patterns`` take."""
    if not base.is_dir():
        raise CorpusError(f"{path}: there is no folder {base}.", "Check `path`.")
    inside = tuple(f"{own}/{pattern}" for pattern in patterns)
    yield from _chosen(base, (own, *inside), "Check `path`", tally, shown=own)


def _chosen(
    folder: Path, patterns: tuple[str, ...], todo: str, tally: Tally | None, shown: str | None = None
) -> Iterator[Path]:
    wanted = matcher(patterns)
    taken = 0
    passed: Tally = Tally() if tally is None else tally
    for name, no_file in _walk(str(folder), ""):
        if not no_file and wanted(name):
            taken += 1
            passed.files += 1
            yield folder / name
        elif shown is None or (no_file and wanted(name)):
            # With a pattern in `path` the user has chosen among the files already; what is none counts there as well.
            passed.passed_over[no_file or ending(name)] += 1
    if not taken:
        there = ", ".join(f"{count:,} {suffix}" for suffix, count in passed.passed_over.most_common(5))
        suffix = next((suffix for suffix in passed.passed_over if suffix.startswith(".")), None)
        line = f': `pattern: ["**/*{suffix}"]` would take those' if suffix and "pattern" in todo else ""
        raise CorpusError(
            f"{folder}: the folder holds no file that fits {shown or ', '.join(patterns)}"
            f"{f' (it has {there})' if there else ''}.",
            f"{todo}{line}.",
        )


def _walk(folder: str, below: str) -> Iterator[tuple[str, str]]:
    """Names of files under a folder, relative to it, in order; each with what it is instead, where it is no file."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError as error:
        # A folder that may not be read must not look like an empty one.
        raise unreadable(Path(folder), error) from None
    for name, is_folder in found:
        if is_folder:
            yield from _walk(f"{folder}/{name}", f"{below}{name}/")
        else:
            yield f"{below}{name}", _instead_of_a_file(Path(folder, name))


def _instead_of_a_file(path: Path) -> str:
    """What something is that is no folder, in words; nothing for a file."""
    if path.is_file():
        return ""
    return "broken links" if path.is_symlink() and not path.exists() else "links to folders and special files"


def ending(name: str) -> str:
    """The ending of a file's name in lower case, ``.jsonl.gz`` for packed ones; what to call files without one."""
    inner = PurePath(unpacked_name(name)).suffix.lower()
    outer = PurePath(name).suffix.lower()
    found = inner + outer if outer in PACKED else inner
    return found or "without an ending"


def inner_suffix(path: Path) -> str:
    """The ending that tells what is in a file, packed or not, in lower case."""
    return Path(unpacked_name(path.name)).suffix.lower()


class _Zstandard(io.RawIOBase):
    """Bytes of a Zstandard file, frame after frame; unlike the library's own reader it refuses a file that was cut off."""

    def __init__(self, raw: IO[bytes]) -> None:
        import zstandard

        self._raw = raw
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame = self._decompressor.decompressobj()
        self._packed, self._ready = b"", b""
        self._begun = False

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; 0 at the end of the file."""
        while not self._ready:
            # Little at a time: packed text may be a thousand times as long.
            packed = self._packed or self._raw.read(1 << 14)
            self._packed = b""
            if not packed:
                if self._begun and not self._frame.eof:
                    raise EOFError("it ends inside a frame")
                return 0
            if self._frame.eof:
                self._frame = self._decompressor.decompressobj()
            self._begun = True
            self._ready = self._frame.decompress(packed)
            if self._frame.eof:
                self._packed = self._frame.unused_data
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked as they are read.

    Raises:
        CorpusError: A packed file is damaged.
        OSError: It cannot be read.
    """
    suffix = path.suffix.lower()
    with contextlib.ExitStack() as stack:
        raw: IO[bytes] = stack.enter_context(open(path, "rb"))
        if suffix in PACKED and not os.fstat(raw.fileno()).st_size:
            # Nothing, packed, has some bytes; the libraries take no bytes for it all the same.
            raise CorpusError(f"{path}: not a whole {suffix} file: it is empty.", "Copy or pack it again.")
        try:
            if suffix == ".gz":
                yield stack.enter_context(gzip.GzipFile(fileobj=raw))  # type: ignore[arg-type]
            elif suffix == ".zst":
                yield stack.enter_context(io.BufferedReader(_Zstandard(raw), 1 << 17))
            else:
                yield raw
        except StillroomError:
            raise
        except Exception as error:
            if suffix in PACKED and (isinstance(error, (EOFError, zlib.error, gzip.BadGzipFile)) or _is_zstd(error)):
                raise CorpusError(
                    f"{path}: not a whole {suffix} file: {str(error).rstrip('.')}.", "Copy or pack it again."
                ) from None
            raise


def _is_zstd(error: Exception) -> bool:
    return type(error).__module__.startswith("zstandard")


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A file that readers can open by its path: the file itself, or what is packed in it as a temporary file.

    Raises:
        CorpusError: There is more in it than :data:`stillroom.corpus.documents.LONGEST`, or it is damaged.
    """
    if path.suffix.lower() not in PACKED:
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=inner_suffix(path)) as copy:
        size = 0
        with opened(path) as stream:
            while block := stream.read(1 << 20):
                size += len(block)
                if size > LONGEST:
                    raise too_long(str(path))
                copy.write(block)
        copy.flush()
        yield Path(copy.name)


def too_long(where: str, *, text: bool = True) -> CorpusError:
    """The refusal of a document that is longer than memory is bounded for."""
    return CorpusError(
        f"{where}: longer than {LONGEST >> 20} MiB, which is the most that one document may have.",
        'Split it into documents: a file of plain text by a `separator: "\\n\\n"` in the recipe, others into several files.'
        if text
        else "Split its text into several rows.",
    )


def no_encoding(path: Path, encoding: str) -> CorpusError:
    """The error of a recipe's ``encoding`` that there is not."""
    return CorpusError(f"{path}: `{encoding}` is not an encoding.", "Write for example utf-8 or latin-1.")


def unreadable(path: Path, error: OSError) -> StillroomError:
    """What went wrong with a file, in words."""
    place = str(error.filename or path)
    if isinstance(error, PermissionError):
        return NotWritable(f"{place}: may not be read.", "Check its permissions.")
    return translate(error, place) or CorpusError(f"{place}: cannot be read: {error.strerror}.", "Check the file.")


def codec_of(data: bytes, path: Path, encoding: str) -> str:
    """Python's name of a codec that reads a file, and its byte order mark if it has one.

    Args:
        data: The file's first bytes, at least :data:`LONGEST_MARK` of a longer file.
        path: The file.
        encoding: As the recipe has it, under any of the names that Python knows.

    Raises:
        CorpusError: There is no such encoding of text; the file has the mark of another one; or UTF-16 or UTF-32 is to be
            read without a mark and without its byte order.
    """
    name = canonical(encoding)
    if name is None:
        raise no_encoding(path, encoding)
    family = next((wide for wide in ("utf-8", "utf-16", "utf-32") if name.startswith(wide)), None)
    marked = next((marked for mark, marked in MARKS if data.startswith(mark)), None)
    if marked is not None:
        plain = marked[:6].rstrip("-")
        if family != plain or (name in MARKED and name != marked):
            raise CorpusError(
                f"{path}: begins with the byte order mark of {marked.upper()}, and is to be read as {encoding}.",
                f"Write `encoding: {plain}` beside `path`.",
            )
        return "utf-8-sig" if plain == "utf-8" else plain
    if data and name in ("utf-16", "utf-32"):
        raise CorpusError(
            f"{path}: has no byte order mark, so that `{encoding}` does not say which byte comes first.",
            f"Write `encoding: {name}-le` or `{name}-be` beside `path`.",
        )
    return name


MARKED = frozenset(name for _, name in MARKS)


def canonical(encoding: str) -> str | None:
    """Python's own name of an encoding, such as ``utf-8`` for ``UTF8``, ``utf_8`` and ``u8``; None if it is none of text."""
    try:
        "".encode(encoding)  # Looking it up would find base64 and the like, too.
        return codecs.lookup(encoding).name
    except (LookupError, ValueError):
        return None


def require_text(data: bytes, path: Path, encoding: str) -> str:
    """Refuse what is no text, by the beginning of a file; the codec that reads it (:func:`codec_of`).

    Raises:
        CorpusError: It begins as some binary format does, or has bytes that are zero; or as in :func:`codec_of`.
    """
    for magic, what in MAGIC:
        if data.startswith(magic):
            raise CorpusError(
                f"{path}: {what}, not text.",
                f"Give it the ending of its kind, or leave it out by `pattern`; it has `{ending(path.name)}`.",
            )
    codec = codec_of(data[:LONGEST_MARK], path, encoding)
    if codec.startswith(("utf-16", "utf-32")):
        return codec
    zero = data.find(b"\0")
    if zero >= 0:
        raise CorpusError(
            f"{path}: the byte at offset {zero} is 0, so that it is no text.",
            "Leave it out by `pattern`; or write `encoding: utf-16` where that is what it is.",
        )
    return codec


def require_known(path: Path) -> None:
    """Refuse a file by its name where it is an archive, packed twice, or a packed table.

    Raises:
        CorpusError: It is; says what to do.
    """
    inner = inner_suffix(path)
    outer = path.suffix.lower()
    found = outer if outer in OTHER_ARCHIVES else inner
    if found in OTHER_ARCHIVES or (outer in PACKED and inner in PACKED):
        raise CorpusError(
            f"{path}: files of the kind {inner if found == outer else inner + outer} are not unpacked.",
            "Unpack it, or pack it as .gz or .zst.",
        )
    if outer in PACKED and inner == ".parquet":
        raise CorpusError(
            f"{path}: Parquet files are read unpacked.", f"Unpack it ({outer}): Parquet packs its columns."
        )
