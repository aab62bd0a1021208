"""Every kind of source to documents, one at a time."""

from __future__ import annotations

import ast
import json
import os
import stat
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillroom.core.errors import CorpusError, NotWritable, StillroomError, first_line, translate
from stillroom.core.extras import require
from stillroom.corpus.documents import Document, document_of, whole_text
from stillroom.corpus.readers.registry import reader_of
from stillroom.recipe.corpus import (
    DatasetSource,
    JsonlSource,
    ParquetSource,
    PythonDocsSource,
    ReasoningGymSource,
    Source,
    TextSource,
)

SHORTEST_DOCSTRING = 200
"""Characters under which docstrings say too little to be a document."""
QUESTIONS = (
    "What does Python's documentation say about {}?",
    "Explain {} in Python.",
    "How do I use {} in Python?",
    "What is {} in Python?",
    "Tell me about {}.",
)
"""Ways to ask for a piece of documentation; each takes its turn."""


def read_source(source: Source) -> Iterator[Document]:
    """The documents of a source, in a fixed order.

    Raises:
        CorpusError: Something is missing, unreadable or of the wrong shape; names file and line or offset.
        MissingDependency: The source needs an extra that is not installed.
    """
    match source:
        case TextSource():
            yield from _text(source)
        case JsonlSource():
            yield from _jsonl(source)
        case ParquetSource():
            yield from _parquet(source)
        case DatasetSource():
            yield from _dataset(source)
        case PythonDocsSource():
            yield from _python_docs(source)
        case ReasoningGymSource():
            yield from _reasoning_gym(source)


def name_of(source: Source) -> str:
    """How messages and the ledger call a source."""
    match source:
        case TextSource() | JsonlSource() | ParquetSource():
            return str(source.path)
        case DatasetSource():
            return source.name
        case PythonDocsSource():
            return "Python's own documentation"
        case ReasoningGymSource():
            return f"reasoning-gym: {', '.join(source.tasks)}"


def _files(path: Path, patterns: tuple[str, ...], check: str = "`path`") -> list[Path]:
    try:
        kind = path.stat().st_mode
        if not stat.S_ISDIR(kind):
            return [path]
        # A folder that may not be read must not look like an empty one.
        for _ in os.walk(path, onerror=_raise):
            pass
    except FileNotFoundError:
        raise CorpusError(
            f"{path}: no such file or folder.", "Check `path`; relative paths start at the recipe's folder."
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from None
    found = sorted({file for pattern in patterns for file in path.glob(pattern) if file.is_file()})
    if not found:
        raise CorpusError(f"{path}: the folder holds no file that fits {', '.join(patterns)}.", f"Check {check}.")
    return found


def _raise(error: OSError) -> None:
    raise error


def _unreadable(path: Path, error: OSError) -> StillroomError:
    place = str(error.filename or path)
    if isinstance(error, PermissionError):
        return NotWritable(f"{place}: may not be read.", "Check its permissions.")
    return translate(error, place) or CorpusError(f"{place}: cannot be read: {error.strerror}.", "Check the file.")


def _text(source: TextSource) -> Iterator[Document]:
    for path in _files(source.path, source.pattern, "`path` and `pattern`"):
        try:
            for number, text in enumerate(reader_of(path).read(path, source.encoding), 1):
                where = str(path) if number == 1 else f"{path}, document {number}"
                yield Document(text=whole_text(text, where), where=where)
        except OSError as error:
            raise _unreadable(path, error) from None
        except StillroomError:
            raise
        except Exception as error:
            raise translate(error, str(path)) or CorpusError(
                f"{path}: not a whole {path.suffix or 'text'} file: {first_line(error)}",
                "Copy or write it again, or leave it out by `pattern`.",
            ) from error


def _jsonl(source: JsonlSource) -> Iterator[Document]:
    for path in _files(source.path, ("**/*.jsonl", "**/*.ndjson")):
        try:
            with open(path, "rb") as stream:
                for number, line in enumerate(stream, 1):
                    if line.strip():
                        where = f"{path}, line {number}"
                        yield document_of(_row(line, where), source.text_key, source.messages_key, where)
        except OSError as error:
            raise _unreadable(path, error) from None


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise CorpusError(f"{where}: not UTF-8 at byte {error.start} of the line.", "Save the file as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error).split(";")[0]
        raise CorpusError(f"{where}: not valid JSON: {reason}.", "Each line holds one JSON object.") from None
    if not isinstance(row, dict):
        raise CorpusError(f"{where}: not a JSON object.", 'A line looks like {"text": "…"}.')
    return row


def _parquet(source: ParquetSource) -> Iterator[Document]:
    require("datasets", "Parquet files need pyarrow.", "pyarrow.parquet")
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    for path in _files(source.path, ("**/*.parquet",)):
        number = 0
        try:
            file = parquet.ParquetFile(path)
            keys = [key for key in (source.text_key, source.messages_key) if key] or ["messages", "text"]
            columns = [key for key in keys if key in file.schema_arrow.names]
            if not columns:
                document_of(dict.fromkeys(file.schema_arrow.names), source.text_key, source.messages_key, str(path))
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield document_of(row, source.text_key, source.messages_key, f"{path}, row {number}")
        except PermissionError as error:
            raise _unreadable(path, error) from None
        except (ArrowException, OSError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise translate(error, str(path)) or CorpusError(
                f"{path}: not a whole Parquet file: {reason}.", "Copy or write it again."
            ) from None


def _dataset(source: DatasetSource) -> Iterator[Document]:
    require("datasets", "Hugging Face datasets need the package `datasets`.", "datasets")
    import datasets

    try:
        folder = Path(source.name)
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            data = datasets.load_from_disk(source.name)
            if isinstance(data, datasets.DatasetDict):
                if source.split not in data:
                    raise CorpusError(
                        f"{source.name}: no split `{source.split}`; there are: {', '.join(data)}.", "Change `split`."
                    )
                data = data[source.split]
        else:
            # A folder is read where it lies, and of a name on the hub no more than what is asked for; otherwise the
            # library's own cache keeps what came over the network.
            streaming = folder.is_dir() or source.limit is not None
            data = datasets.load_dataset(
                source.name, source.config, split=source.split, revision=source.revision, streaming=streaming
            )
        for number, row in enumerate(data, 1):
            yield document_of(row, source.text_key, source.messages_key, f"{source.name}, row {number}")
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise translate(error, source.name) or CorpusError(
            f"The dataset {source.name} cannot be read: {reason}.",
            "Check the name, the split and the network, or give a folder.",
        ) from None


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
