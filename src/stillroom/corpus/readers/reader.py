"""What a reader is: the suffixes of a format's files, and how such a file becomes documents.

A new reader is one file beside this one that says ``READERS = (Reader(...),)``; a package of one's own names such a value
under the entry point ``stillroom.readers``. Which files of a folder are read is the recipe's ``pattern`` alone: a package
that is installed never adds files to a corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from stillroom.core.errors import CorpusError
from stillroom.corpus.inputs import LONGEST_MARK, codec_of, require_text


@dataclass(frozen=True)
class PassedOver:
    """What a reader did not take from a file; a reader gives it among its texts, and it is counted and named.

    Attributes:
        what: A few words in the plural, the same for every file, such as ``"pages of PDF files without text"``.
        count: How many.
    """

    what: str
    count: int


@dataclass(frozen=True)
class Reader:
    """One format.

    Attributes:
        suffixes: The endings of its files' names, lower case, such as ``(".txt",)``.
        read: Called with a file's path and the recipe's ``encoding`` (a format that knows its own leaves it alone); gives
            the text of each document of the file, in order, and a :class:`PassedOver` for what it leaves out. A damaged
            file is a :class:`CorpusError` that says what is wrong and where; an ``OSError`` becomes one.
    """

    suffixes: tuple[str, ...]
    read: Callable[[Path, str], Iterable[str | PassedOver]]

    def __post_init__(self) -> None:
        for suffix in self.suffixes:
            if suffix != suffix.lower() or not suffix.startswith(".") or suffix.count(".") > 1:
                raise ValueError(f"{suffix!r} is not the ending of a name in lower case, such as '.txt'")


def read_text(path: Path, encoding: str) -> str:
    """A whole file as text, without a byte order mark.

    Raises:
        CorpusError: The bytes are not of the encoding, or there is no such encoding, or the file is no text; names file and
            offset.
        OSError: The file cannot be read.
    """
    data = path.read_bytes()
    require_text(data, path, encoding)
    return decoded(data, path, encoding)


def decoded(data: bytes, path: Path, encoding: str) -> str:
    """A file's bytes as text, without a byte order mark.

    Raises:
        CorpusError: They are not of the encoding, or there is no such encoding; names file and offset.
    """
    codec = codec_of(data[:LONGEST_MARK], path, encoding)
    try:
        return data.decode(codec).removeprefix("\ufeff")
    except UnicodeError as error:
        where = f"the bytes at offset {error.start}" if isinstance(error, UnicodeDecodeError) else "its bytes"
        raise CorpusError(
            f"{path}: {where} are not {encoding}.",
            "Name the right `encoding` in the recipe, or save the file as UTF-8.",
        ) from None
