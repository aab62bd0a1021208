"""Every kind of source to documents, one at a time."""

from __future__ import annotations

import ast
import csv
import io
import itertools
import json
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from stillroom.core.errors import CorpusError, StillroomError, first_line, translate
from stillroom.core.extras import require
from stillroom.core.strict_json import Twice, once_each
from stillroom.corpus.beside import always_filled, filled
from stillroom.corpus.documents import LINE_ENDS, LONGEST, OLD_LINE_ENDS, Document, clean, has_old_line_ends, whole_text
from stillroom.corpus.inputs import (
    find_files,
    inner_suffix,
    opened,
    require_known,
    require_text,
    too_long,
    unpacked,
    unreadable,
)
from stillroom.corpus.readers.plain import PLAIN
from stillroom.corpus.readers.reader import PassedOver
from stillroom.corpus.readers.registry import reader_of
from stillroom.corpus.rows import KNOWN, LABEL, document_of
from stillroom.corpus.tally import Tally
from stillroom.recipe.corpus import (
    TABLES,
    DatasetSource,
    JsonlSource,
    ParquetSource,
    PythonDocsSource,
    ReasoningGymSource,
    Source,
    TextSource,
)
from stillroom.switch import require_on

if TYPE_CHECKING:
    import datasets

SHORTEST_DOCSTRING = 200
"""Characters under which docstrings say too little to be a document."""
BLOCK = 1 << 20
"""Characters that are read at a time."""
QUESTIONS = (
    "What does Python's documentation say about {}?",
    "Explain {} in Python.",
    "How do I use {} in Python?",
    "What is {} in Python?",
    "Tell me about {}.",
)
"""Ways to ask for a piece of documentation; each takes its turn."""


def read_source(source: Source, tally: Tally | None = None) -> Iterator[Document]:
    """The documents of a source, in a fixed order.

    Args:
        source: The recipe's source.
        tally: Counts what is taken, passed over and changed.

    Raises:
        CorpusError: Something is missing, unreadable or of the wrong shape; names file and line or offset.
        MissingDependency: The source needs an extra that is not installed.
    """
    tally = Tally() if tally is None else tally
    match source:
        case TextSource():
            yield from _text(source, tally)
        case JsonlSource():
            yield from _jsonl(source, tally)
        case ParquetSource():
            yield from _parquet(source, tally)
        case DatasetSource():
            yield from _dataset(source, tally)
        case PythonDocsSource():
            yield from _python_docs(source)
        case ReasoningGymSource():
            yield from _reasoning_gym(source)


def name_of(source: Source) -> str:
    """How messages and the data manifest call a source."""
    match source:
        case TextSource() | JsonlSource() | ParquetSource():
            return str(source.path)
        case DatasetSource():
            return source.name
        case PythonDocsSource():
            return "Python's own documentation"
        case ReasoningGymSource():
            return f"reasoning-gym: {', '.join(source.tasks)}"


def _text(source: TextSource, tally: Tally) -> Iterator[Document]:
    plain = 0
    for path in find_files(source.path, source.pattern, "`path` and `pattern`", tally):
        require_known(path)
        kind = inner_suffix(path)
        if kind in (".jsonl", ".ndjson", ".parquet"):
            right = "parquet" if kind == ".parquet" else "jsonl"
            raise CorpusError(f"{path}: holds rows, not plain text.", f"Write `kind: {right}` for this source.")
        reader = reader_of(Path(f"file{kind}"))
        plain += reader is PLAIN
        if source.separator is not None and reader is PLAIN:
            yield from _separated(path, source.separator, source.encoding, tally)
            continue
        with unpacked(path) as real:
            try:
                if reader is PLAIN and real.stat().st_size > LONGEST:
                    raise too_long(str(path))
                number = 0
                for text in reader.read(real, source.encoding):
                    if isinstance(text, PassedOver):
                        tally.notes[text.what] += text.count
                        continue
                    number += 1
                    where = str(path) if number == 1 else f"{path}, document {number}"
                    if len(text) > LONGEST:
                        raise too_long(where)
                    if reader is PLAIN and has_old_line_ends(text):
                        text = text.replace("\r", "\n")
                        tally.notes[OLD_LINE_ENDS] += 1
                    yield Document(text=clean(text, where, tally), where=where)
            except OSError as error:
                raise unreadable(path, error) from None
            except StillroomError as error:
                if real == path:
                    raise
                raise type(error)(error.what.replace(str(real), str(path)), error.todo) from None
            except Exception as error:
                raise translate(error, str(path)) or CorpusError(
                    f"{path}: not a whole {kind or 'text'} file: {first_line(error)}",
                    "Copy or write it again, or leave it out by `pattern`.",
                ) from error
    if source.separator is not None and not plain:
        raise CorpusError(
            f"{source.path}: `separator` is what is between the documents of a file of plain text, and there is none here.",
            "Leave out `separator`.",
        )


def _separated(path: Path, separator: str, encoding: str, tally: Tally) -> Iterator[Document]:
    """The documents of a file of plain text between separators; the file is never whole in memory."""
    rest, number, carried = "", 0, ""
    with opened(path) as stream:
        try:
            codec = require_text(stream.peek(4096)[:4096], path, encoding)  # type: ignore[attr-defined]
            old = _has_old_line_ends(path, codec)
            tally.notes.update([OLD_LINE_ENDS] if old else [])
            reader = io.TextIOWrapper(stream, codec, newline="")
            # As the text's line ends.
            separator = separator.replace("\r\n", "\n")
            separator = separator.replace("\r", "\n") if old else separator
            while True:
                block = reader.read(BLOCK)
                block = block.replace("\r", "\n") if old else block
                if "\0" in block:
                    raise CorpusError(f"{path}: has characters that are 0, so that it is no text.", "Leave it out.")
                whole, carried = carried + block, ""
                if whole.endswith("\r") and block:
                    whole, carried = whole[:-1], "\r"
                if "\r\n" in whole:
                    tally.notes[LINE_ENDS] += 1
                rest += whole.replace("\r\n", "\n")
                *found, rest = rest.split(separator)
                for text in found if block else [*found, rest]:
                    number += 1
                    where = f"{path}, document {number}"
                    yield Document(text=whole_text(text, where), where=where)
                if not block:
                    return
                if len(rest) > LONGEST:
                    raise too_long(f"{path}, document {number + 1}")
        except UnicodeError as error:
            raise _not_encoded(f"{path}, document {number + 1}", encoding, error) from None
        except OSError as error:
            raise unreadable(path, error) from None


def _has_old_line_ends(path: Path, codec: str) -> bool:
    """:func:`has_old_line_ends` of a file that is never whole in memory; it is read up to its first line feed.

    Bytes that do not fit the encoding are for its reader to refuse.
    """
    found, last = False, ""
    with opened(path) as stream:
        reader = io.TextIOWrapper(stream, codec, errors="ignore", newline="")
        while block := reader.read(BLOCK):
            if "\n" in block:
                return False
            # A carriage return that ends the file ends no line.
            found = found or has_old_line_ends(last + block)
            last = block[-1]
    return found


def _not_encoded(where: str, encoding: str, error: UnicodeError) -> CorpusError:
    reason = error.reason if isinstance(error, UnicodeDecodeError) else first_line(error)
    return CorpusError(
        f"{where}: has bytes that are not {encoding}: {reason}.",
        "Name the right `encoding` in the recipe, or save the file as UTF-8.",
    )


COLUMNS = (".csv", ".tsv")


def _jsonl(source: JsonlSource, tally: Tally) -> Iterator[Document]:
    paths = list(
        find_files(source.path, source.pattern, "`path` and `pattern`" if source.path.is_dir() else "`path`", tally)
    )
    if source.delimiter is not None and not any(inner_suffix(path) in COLUMNS for path in paths):
        raise CorpusError(
            f"{source.path}: `delimiter` is what is between the columns of `.csv` and `.tsv` files, and there is none here.",
            "Leave out `delimiter`, or give a table the ending `.csv`.",
        )
    for path in paths:
        require_known(path)
        kind = inner_suffix(path)
        if kind == ".parquet":
            raise CorpusError(f"{path}: a Parquet file.", "Write `kind: parquet` for this source.")
        try:
            with opened(path) as stream:
                codec = require_text(stream.peek(8)[:8], path, source.encoding)  # type: ignore[attr-defined]
                if kind == ".json":
                    rows = _json(stream, path, codec)
                elif kind in COLUMNS:
                    rows = _csv(stream, path, codec, kind, source)
                else:
                    rows = _lines(stream, path, codec)
                for row, where in rows:
                    yield document_of(
                        row, source.text_key, source.messages_key, where, ignore=source.ignore, tally=tally
                    )
        except UnicodeError as error:
            raise _not_encoded(str(path), source.encoding, error) from None
        except OSError as error:
            raise unreadable(path, error) from None


Rows = Iterator[tuple[dict[str, Any], str]]


def _lines(stream: IO[bytes], path: Path, codec: str) -> Rows:
    """The rows of JSON Lines, and where each is."""
    lines: IO[Any] = stream
    if not codec.startswith("utf-8"):
        lines = io.TextIOWrapper(stream, codec, newline="\n")
    number = 0
    while line := lines.readline(LONGEST + 1):
        number += 1
        where = f"{path}, line {number}"
        if len(line) > LONGEST:
            raise too_long(where, text=False)
        if line.strip():
            yield _row(line, where), where


def _row(line: bytes | str, where: str) -> dict[str, Any]:
    try:
        # Given bytes, `json` would take those with zeros for UTF-16 or UTF-32.
        text = (line if isinstance(line, str) else line.decode("utf-8")).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{where}: not UTF-8 at byte {error.start} of the line.", "Save the file as UTF-8.") from None
    if "\0" in text:
        raise CorpusError(
            f"{where}: has characters that are 0, so that it is no text.",
            "Write the file again, or name its `encoding` in the recipe.",
        )
    try:
        row = json.loads(text, object_pairs_hook=once_each)
    except (ValueError, RecursionError) as error:
        reason = _reason(error)
        array = text.lstrip()[:1] == "[" and where.endswith("line 1")
        raise CorpusError(
            f"{where}: not valid JSON: {reason}.",
            "Each line holds one JSON object." + (" A file that is one JSON array ends in `.json`." if array else ""),
        ) from None
    if not isinstance(row, dict):
        raise CorpusError(f"{where}: not a JSON object.", 'A line looks like {"text": "…"}.')
    return row


def _json(stream: IO[bytes], path: Path, codec: str) -> Rows:
    """The objects of a JSON array, or objects one behind the other; never the whole file."""
    text = io.TextIOWrapper(stream, codec)
    decoder = json.JSONDecoder(object_pairs_hook=once_each)
    rest, number, array, wanted = "", 0, None, 0
    while True:
        block = text.read(BLOCK)
        rest += block
        if block and len(rest) < wanted:
            continue
        at = 0
        while True:
            at += len(rest) - at - len(rest[at:].lstrip()) if rest[at : at + 1].isspace() else 0
            if at >= len(rest):
                break
            if array is None:
                array = rest[at] == "["
                at += array
                comma = False
                continue
            if array and rest[at] == "]":
                if rest[at + 1 :].strip() or text.read(BLOCK).strip():
                    raise CorpusError(
                        f"{path}: something follows the array.", "A JSON file holds one array of objects."
                    )
                return
            if array and comma:
                if rest[at] != ",":
                    raise CorpusError(f"{path}, row {number}: no comma behind it.", "Write the array as valid JSON.")
                at, comma = at + 1, False
                continue
            where = f"{path}, row {number + 1}"
            try:
                row, at = decoder.raw_decode(rest, at)
            except (ValueError, RecursionError) as error:
                if block and _unfinished(error, len(rest)):
                    if len(rest) - at > LONGEST:
                        raise too_long(where, text=False) from None
                    wanted = 2 * (len(rest) - at)
                    break
                raise CorpusError(
                    f"{where}: not valid JSON: {_reason(error)}.", "Write the array as valid JSON."
                ) from None
            if not isinstance(row, dict):
                raise CorpusError(f"{where}: not a JSON object.", 'A row looks like {"text": "…"}.')
            number, comma = number + 1, True
            yield row, where
        rest = rest[at:]
        if not block:
            if array:
                raise CorpusError(f"{path}: the array does not end.", "The file was cut off: copy it again.")
            return


def _reason(error: Exception) -> str:
    """Why a text is no JSON, in a few words."""
    if isinstance(error, Twice):
        return f"the key {str(error)[:80]!r} is there twice"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error).split(";")[0]


def _unfinished(error: Exception, length: int) -> bool:
    """Whether more text may mend a decoder's error."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= length - 16


def _delimiter(header: str, path: Path, kind: str, source: JsonlSource) -> str:
    """What is between the columns of a table: as the recipe says, or as its first line shows.

    Raises:
        CorpusError: The first line is one column by the delimiter of the recipe or of its kind, none that is looked for,
            and several by another one.
    """
    usual = source.delimiter or ("\t" if kind == ".tsv" else ",")

    def columns(delimiter: str) -> list[str]:
        try:
            return next(csv.reader([header], delimiter=delimiter, strict=True), [])
        except csv.Error:
            return []

    if len(columns(usual)) != 1:
        return usual
    wanted = {source.text_key, source.messages_key} - {None} or KNOWN
    if wanted.issuperset(columns(usual)):
        return usual
    for other in (";", "\t", ",", "|"):
        found = columns(other)
        if source.delimiter is None and other == ";" and len(found) > 1 and wanted.intersection(found):
            return other
        if len(found) > 1:
            instead = "name the column as `text_key`" if source.delimiter else f"`delimiter: {json.dumps(usual)}`"
            raise CorpusError(
                f"{path}: the first line is one column with {_shown(usual)} between columns, and {len(found)} with "
                f"{_shown(other)}.",
                f"Write `delimiter: {json.dumps(other)}` beside `path`, or {instead}.",
            )
    return usual


def _shown(delimiter: str) -> str:
    return "tabs" if delimiter == "\t" else f"`{delimiter}`"


def _csv(stream: IO[bytes], path: Path, codec: str, kind: str, source: JsonlSource) -> Rows:
    """The rows of a table whose first line that is not blank names its columns."""
    text = io.TextIOWrapper(stream, codec, newline="")
    csv.field_size_limit(LONGEST)
    blank = 0
    while not (header := text.readline(LONGEST + 1)).strip() and header:
        blank += 1
    if len(header) > LONGEST:
        raise too_long(f"{path}, line {blank + 1}", text=False)
    lines = itertools.chain([header], text)
    reader = csv.reader(lines, delimiter=_delimiter(header, path, kind, source), strict=True)
    try:
        names = next(reader, [])
        if len(set(names)) < len(names):
            raise CorpusError(f"{path}: two columns have one name.", "Give each column a name of its own.")
        for number, row in enumerate(reader, 1):
            where = f"{path}, row {number}"
            if not row:
                continue
            if len(row) != len(names):
                raise CorpusError(
                    f"{where}: {len(row)} fields for {len(names)} columns.", "Quote fields that hold the delimiter."
                )
            if any("\0" in field for field in row):
                raise CorpusError(
                    f"{where}: has characters that are 0, so that it is no text.", "Write the file again."
                )
            yield dict(zip(names, row, strict=True)), where
    except csv.Error as error:
        line = blank + reader.line_num
        raise CorpusError(f"{path}, line {line}: not a CSV row: {error}.", "Write the file again.") from None


def _without_nulls(value: Any) -> Any:
    """A value of a table without the keys that are null: columns give every entry the keys of all others."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    return value


def _table_document(row: dict[str, Any], source: ParquetSource | DatasetSource, where: str, tally: Tally) -> Document:
    """The document of a row of a table."""
    filled = {key: _without_nulls(value) for key, value in row.items()}
    return document_of(filled, source.text_key, source.messages_key, where, ignore=source.ignore, tally=tally)


def _parquet(source: ParquetSource, tally: Tally) -> Iterator[Document]:
    require("datasets", "Parquet files need pyarrow.", "pyarrow.parquet")
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    for path in find_files(source.path, TABLES, tally=tally):
        require_known(path)
        number = 0
        try:
            file = parquet.ParquetFile(path)
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise CorpusError(f"{path}: two columns have one name.", "Give each column a name of its own.")
            wanted = [key for key in (source.text_key, source.messages_key) if key]
            columns = [name for name in names if name in wanted or name in KNOWN]
            if not columns or not set(wanted) <= set(names):
                document_of(dict.fromkeys(names), source.text_key, source.messages_key, str(path))
            # It is of use beside an answer only, and counted by row otherwise.
            columns += [name for name in names if name == LABEL and name not in columns]
            for group in range(file.num_row_groups):
                whole = always_filled(file, group).difference(columns)
                beside = [name for name in names if name not in whole and name not in columns]
                for batch in file.iter_batches(batch_size=256, row_groups=[group], columns=columns + beside):
                    for row, unused in zip(batch.select(columns).to_pylist(), filled(batch, beside), strict=True):
                        number += 1
                        # Before the row is given: a `limit` asks for no more, and what follows is not reached.
                        tally.unused.update([*whole, *unused])
                        yield _table_document(row, source, f"{path}, row {number}", tally)
        except PermissionError as error:
            raise unreadable(path, error) from None
        except (ArrowException, OSError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise translate(error, str(path)) or CorpusError(
                f"{path}: not a whole Parquet file: {reason}.", "Copy or write it again."
            ) from None


def _dataset(source: DatasetSource, tally: Tally) -> Iterator[Document]:
    require("datasets", "Hugging Face datasets need the package `datasets`.", "datasets")
    import datasets

    try:
        folder = Path(source.name)
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            data = _saved(datasets.load_from_disk(source.name), source)
        else:
            # A folder is read where it is, and of a name on the hub no more than what is asked for; otherwise the
            # library's own cache keeps what came over the network.
            streaming = folder.is_dir() or source.limit is not None
            if not folder.is_dir():
                require_on("downloads")
            data = datasets.load_dataset(
                source.name, source.config, split=source.split, revision=source.revision, streaming=streaming
            )
        for number, row in enumerate(data, 1):
            yield _table_document(row, source, f"{source.name}, row {number}", tally)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise translate(error, source.name) or CorpusError(
            f"The dataset {source.name} cannot be read: {reason}.",
            "Check the name, the split and the network, or give a folder.",
        ) from None


def _saved(data: datasets.Dataset | datasets.DatasetDict, source: DatasetSource) -> datasets.Dataset:
    """The table that is asked for of what ``save_to_disk`` wrote: all splits of one configuration, or one table.

    Raises:
        CorpusError: It is another split or configuration than the recipe names.
    """
    import datasets

    if isinstance(data, datasets.DatasetDict):
        if source.split not in data:
            raise CorpusError(
                f"{source.name}: no split `{source.split}`; there are: {', '.join(data)}.", "Change `split`."
            )
        data = data[source.split]
    else:
        # What was taken of a split, such as `train[:10%]`, is of that split; a table without one has the usual name.
        held = str(data.split or DatasetSource.model_fields["split"].default)
        if source.split not in (held, held.partition("[")[0]):
            raise CorpusError(
                f"{source.name}: one saved table, of the split `{held}`, and the recipe asks for `{source.split}`.",
                f"Write `split: {held}`, or name the folder that has the split `{source.split}`.",
            )
    if source.config not in (None, data.config_name):
        of = f"of the configuration `{data.config_name}`" if data.config_name else "which names no configuration"
        raise CorpusError(
            f"{source.name}: a saved dataset {of}, and the recipe asks for `{source.config}`.",
            "Leave `config` out, or name the folder that has it.",
        )
    return data


def _python_docs(source: PythonDocsSource) -> Iterator[Document]:
    for number, (subject, text, where) in enumerate(_documentation(source.parts)):
        if source.form == "text":
            yield Document(text=text, where=where)
        else:
            asked = QUESTIONS[number % len(QUESTIONS)].format(f"`{subject}`")
            messages = ({"role": "user", "content": asked}, {"role": "assistant", "content": text.strip()})
            yield Document(f"{asked}\n{text}", messages, where)


def _documentation(parts: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """Subject, text and place of every piece of Python's documentation."""
    if "topics" in parts:
        from pydoc_data.topics import topics

        for name in sorted(topics):
            yield name.replace("-", " "), topics[name].strip() + "\n", f"pydoc topic {name}"
    if "docstrings" in parts:
        root = Path(sysconfig.get_paths()["stdlib"])
        for path in sorted(root.glob("*.py")) + sorted(root.glob("[a-z]*/*.py")):
            if path.parent.name in ("site-packages", "test", "idlelib", "lib2to3", "pydoc_data", "turtledemo"):
                continue
            for name, text in _docstrings(path):
                if len(text) >= SHORTEST_DOCSTRING:
                    subject = path.stem if name in ("", path.stem) else f"{path.stem}.{name}"
                    yield subject, text, f"{path}, {name}"


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """The docstrings of a module and of each top-level class or function with what it holds; nothing is imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return

    def visit(node: ast.AST, prefix: str) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}{node.name}"
            found = ast.get_docstring(node)
            if found and not node.name.startswith("_"):
                arguments = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
                yield f"{name}{arguments}\n\n{found}"
            for child in ast.iter_child_nodes(node):
                yield from visit(child, f"{name}.")

    own = ast.get_docstring(tree)
    if own:
        yield path.stem, f"{path.stem}\n\n{own}\n"
    for node in tree.body:
        text = "\n\n".join(visit(node, f"{path.stem}."))
        if text:
            yield getattr(node, "name", ""), text + "\n"


def _reasoning_gym(source: ReasoningGymSource) -> Iterator[Document]:
    require("reasoning", "Generated questions need the package `reasoning-gym`.")
    import reasoning_gym

    for task in source.tasks:
        try:
            data = reasoning_gym.create_dataset(task, size=source.count, seed=0)
        except ValueError as error:
            raise CorpusError(
                f"reasoning-gym has no task `{task}`: {str(error).rstrip('.')}.", "Change `tasks`."
            ) from None
        for number, item in enumerate(data, 1):
            messages = (
                {"role": "user", "content": str(item["question"])},
                {"role": "assistant", "content": str(item["answer"])},
            )
            plain = f"{messages[0]['content']}\n{messages[1]['content']}\n"
            yield Document(plain, messages, f"reasoning-gym {task}, question {number}")
