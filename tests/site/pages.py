"""Follows the tutorial and the how-tos on tiny models: every shell and Python block of a page, in order, in one folder.

What a page needs besides its own words stands in HTML comments, which neither a code host nor the site shows:

    <!-- docs: given handbook/ = text -->            a fixture of FIXTURES, put there before the first block
    <!-- docs: file handbook.yaml -->                the next block is this file
    <!-- docs: file handbook.yaml, tiny; KEY=VALUE --> the same as YAML, with the numbers of TINY and further keys changed
    <!-- docs: file handbook.yaml, added; KEY=VALUE -->    the block's keys are put into the file that is there
    <!-- docs: with s3://bucket/cache = cache -->    another text in all blocks of the page
    <!-- docs: not run: it needs a GPU -->           the next block is not run, and why

A block without a comment is run: `python` as one program, and `bash`, `sh` or a block of no language with commands line by
line, as somebody would type them. `stillroom serve` goes on in the background until the page ends. Port 8080 is replaced by
one that is free, and the user's folders (switch, trust) by folders of the page's own.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
TOKEN = re.compile(
    r"^<!-- docs: (?P<comment>.*?) -->$|^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
SHELL = ("bash", "sh", "shell")
COMMAND = re.compile(
    r"^(stillroom|pip|python|make|curl|ollama|llama-\w+|cp|git|mkdir|cat|ls|seq|docker|npm|export) ?", re.MULTILINE
)
PASSPHRASE = "of the pages' own keys"
TINY: dict[str, Any] = {
    "seed": 0,
    "compute.device": "cpu",
    "compute.threads": 1,
    "corpus.sequence_length": 64,
    "corpus.train_tokens": 1024,
    "corpus.validation_tokens": 128,
    "corpus.heldout_tokens": 256,
    "distill.batch_tokens": 256,
    "distill.precision": "float32",
    "evaluate.measures": ["fidelity", "cost"],
    "evaluate.speed_tokens": 4,
    "evaluate.bootstrap_samples": 100,
    "export.check_tokens": 64,
}
"""What makes a page's recipe small enough for a test; everything else in it stays as the page has it."""
OWN_HOME = """
import os, pwd
def _own(entry, home=os.environ.get("STILLROOM_PAGE_HOME")):
    return pwd.struct_passwd((*entry[:5], home, entry[6])) if home else entry
_real = pwd.getpwuid
pwd.getpwuid = lambda number: _own(_real(number))
"""
OWN = {"kind": "own", "decided_by": "Stillroom's tests", "decided_at": "2026-11-24T00:00:00Z"}
SERVED = 120
"""Seconds that a server may take until it answers."""


@dataclass(frozen=True)
class Block:
    """A fenced block and what the comments before it say."""

    language: str
    text: str
    line: int
    file: str | None = None
    changes: tuple[str, ...] = ()
    reason: str | None = None

    @property
    def kind(self) -> str | None:
        """``shell`` or ``python``; None for what no one runs."""
        if self.language == "python":
            return "python"
        if self.language in SHELL or (not self.language and COMMAND.match(self.text)):
            return "shell"
        return None


@dataclass
class Page:
    """A page's fixtures and blocks."""

    path: Path
    given: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its path below docs/, without the ending."""
        return self.path.relative_to(ROOT / "docs").with_suffix("").as_posix()


def read_page(path: Path) -> Page:
    """A page's blocks and comments; a comment that says nothing known is an error."""
    page, waiting = Page(path), {}
    text = path.read_text(encoding="utf-8")
    for found in TOKEN.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        if (comment := found["comment"]) is None:
            page.blocks.append(Block(found["language"], found["text"], line, **waiting))
            waiting = {}
        elif match := re.fullmatch(r"given (\S+) = (.+)", comment):
            page.given[match[1]] = match[2]
        elif match := re.fullmatch(r"with (.+?) = (.+)", comment):
            page.replaced[match[1]] = match[2]
        elif match := re.fullmatch(r"file (\S+?)(?:, (.+))?", comment):
            waiting = {"file": match[1], "changes": tuple(match[2].split("; ")) if match[2] else ()}
        elif match := re.fullmatch(r"not run: (.+)", comment):
            waiting = {"reason": match[1]}
        else:
            raise AssertionError(f"{path.name}:{line}: {comment!r} is none of the comments of tests/site/pages.py")
    assert not waiting, f"{path.name}: a comment with no block behind it"
    return page


def pages() -> list[Path]:
    """The tutorial and the how-tos: what docs/README.md lists under these headings."""
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    found: list[Path] = []
    for title in ("Tutorial", "How-to"):
        (section,) = re.findall(rf"^## {title}\n(.*?)^## ", index, re.MULTILINE | re.DOTALL)
        found += [ROOT / "docs" / target for target in re.findall(r"\]\(([\w/-]+\.md)\)", section)]
    return found


def with_changes(recipe: str, changes: tuple[str, ...], before: str = "") -> str:
    """A recipe with keys changed, as YAML; ``tiny`` stands for all of TINY, ``added`` puts it into the recipe ``before``."""
    settings = yaml.safe_load(recipe)
    for change in changes:
        if change == "added":
            settings = _merged(yaml.safe_load(before), settings)
            continue
        if change == "tiny":
            pairs = list(TINY.items())
        else:
            key, _, value = change.partition("=")
            pairs = [(key, yaml.safe_load(value))]
        for dotted, value in pairs:
            *parents, last = dotted.split(".")
            section = settings
            for parent in parents:
                section = section.setdefault(parent, {})
            if value is None:
                section.pop(last, None)
            else:
                section[last] = value
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _merged(before: dict[str, Any], added: dict[str, Any]) -> dict[str, Any]:
    found = dict(before)
    for key, value in added.items():
        old = found.get(key)
        same = (
            isinstance(old, dict) and isinstance(value, dict) and old.get("kind") == value.get("kind", old.get("kind"))
        )
        found[key] = _merged(old, value) if same else value  # type: ignore[arg-type]
    return found


class Follower:
    """One page, followed in a folder."""

    def __init__(self, page: Page, folder: Path, fixtures: dict[str, Callable[[Path], Any]]) -> None:
        self.page, self.fixtures = page, fixtures
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        self.port = _free_port()
        self.running: list[subprocess.Popen[str]] = []
        self.stack = contextlib.ExitStack()
        self.replaced = {"127.0.0.1:8080": f"127.0.0.1:{self.port}", "localhost:8080": f"localhost:{self.port}"}
        self.replaced |= page.replaced
        home, bin_ = folder / "home", folder / "bin"
        home.mkdir()
        bin_.mkdir()
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(OWN_HOME, encoding="utf-8")
        for name, call in (("stillroom", "-m stillroom"), ("python", "")):
            (bin_ / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {call} "$@"\n', encoding="utf-8")
            (bin_ / name).chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(folder / "site"), str(ROOT / "src"), str(ROOT)]),
            "STILLROOM_PAGE_HOME": str(home),
            "STILLROOM_PASSPHRASE": PASSPHRASE,
            "XDG_CACHE_HOME": str(folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "100",
        }

    def __enter__(self) -> Follower:
        for path, name in self.page.given.items():
            made = self.fixtures[name](self.work / path)
            if hasattr(made, "__enter__"):  # a server: its address stands for the one of the page
                self.replaced[path] = self.stack.enter_context(made)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        self.stack.close()

    def follow(self) -> Iterator[tuple[Block, str]]:
        """Each block that is a file or a program, and what it printed."""
        for block in self.page.blocks:
            if block.file is not None:
                target = self.work / block.file
                target.parent.mkdir(parents=True, exist_ok=True)
                text = self._own(block.text)
                if block.changes:
                    before = target.read_text(encoding="utf-8") if "added" in block.changes else ""
                    text = with_changes(text, block.changes, before)
                target.write_text(text, encoding="utf-8")
            elif block.kind is None or block.reason is not None:
                continue
            elif block.kind == "python":
                yield block, self._run([sys.executable, "-c", self._own(block.text)], block)
            else:
                yield block, "".join(self._line(line, block) for line in commands(block.text))

    def _own(self, text: str) -> str:
        for old, new in sorted(self.replaced.items(), key=lambda pair: -len(pair[0])):
            text = text.replace(old, new)
        return text

    def _line(self, line: str, block: Block) -> str:
        line = self._own(line)
        if re.match(r"stillroom serve ", line):
            self._serve(line, block)
            return ""
        return self._run(["bash", "-euc", line], block)

    def _serve(self, line: str, block: Block) -> None:
        words = [*shlex.split(line, comments=True), "--port", str(self.port)]
        log = self.work.parent / "served.log"
        with log.open("w", encoding="utf-8") as stream:
            process = subprocess.Popen(
                words, cwd=self.work, env=self.environment, stdout=stream, stderr=subprocess.STDOUT, text=True,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self.running.append(process)
        for _ in range(SERVED * 5):
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).status == 200:
                    return
            assert process.poll() is None, f"{self._where(block)}: {line}\n{log.read_text(encoding='utf-8')[-3000:]}"
            time.sleep(0.2)
        raise AssertionError(f"{self._where(block)}: {line}: no answer within {SERVED} s")

    def _run(self, words: list[str], block: Block) -> str:
        done = subprocess.run(
            words, cwd=self.work, env=self.environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            timeout=900, check=False,
        )  # fmt: skip
        shown = done.stdout[-3000:] + done.stderr[-3000:]
        assert done.returncode == 0, f"{self._where(block)}: exit status {done.returncode}\n{words[-1]}\n{shown}"
        return done.stdout

    def _where(self, block: Block) -> str:
        return f"docs/{self.page.name}.md:{block.line}"


def commands(text: str) -> list[str]:
    """The commands of a shell block; one may go over several lines that end with a backslash or stand in a here-document."""
    lines, found = iter(text.splitlines()), []
    for line in lines:
        whole = line.removeprefix("$ ")
        while whole.endswith("\\"):
            whole = whole[:-1] + next(lines)
        if end := re.search(r"<<'?(\w+)'?$", whole):
            for more in lines:
                whole += "\n" + more
                if more == end[1]:
                    break
        if whole.strip() and not whole.lstrip().startswith("#"):
            found.append(whole)
    return found


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# Fixtures: what pages take for granted.


def text_folder(path: Path) -> None:
    """Forty short documents."""
    from pydoc_data.topics import topics

    path.mkdir(parents=True, exist_ok=True)
    for number, (_, content) in enumerate(sorted(topics.items())[:40]):
        (path / f"{number:02}.txt").write_text(content[:800], encoding="utf-8")


def other_text(path: Path, begin: int = 800) -> None:
    """Other short documents: what comes later in the same long texts."""
    from pydoc_data.topics import topics

    path.mkdir(parents=True, exist_ok=True)
    parts = [content[begin : begin + 800] for content in topics.values() if len(content) > begin + 800]
    for number, part in enumerate(parts):
        (path / f"{number:02}.txt").write_text(part, encoding="utf-8")


def tool_rows(path: Path) -> None:
    """Conversations with a tool, as a page shows them."""
    tools = [{"type": "function", "function": {"name": "stock", "description": "Parts left", "parameters": {
        "type": "object", "properties": {"part": {"type": "string"}}}}}]  # fmt: skip
    rows = []
    for number in range(400):
        call = {"type": "function", "function": {"name": "stock", "arguments": {"part": f"M{number}"}}}
        rows.append({"tools": tools, "messages": [
            {"role": "user", "content": f"How many parts M{number} are left?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": str(number * 7)},
            {"role": "assistant", "content": f"There are {number * 7} of M{number}."},
        ]})  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def chat_rows(path: Path) -> None:
    """Forty conversations as JSON Lines."""
    from pydoc_data.topics import topics

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"messages": [{"role": "user", "content": f"What is {name}?"}, {"role": "assistant", "content": content[:200]}]}
        for name, content in sorted(topics.items())[40:80]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def teacher(path: Path, **settings: Any) -> None:
    """A tiny Llama."""
    from tiny_models import tiny_model

    tiny_model("llama", path, **({"layers": 4} | settings))


def tool_teacher(path: Path) -> None:
    """A tiny Llama whose chat template writes tools and calls."""
    teacher(path)
    (path / "chat_template.jinja").write_text(TOOL_TEMPLATE, encoding="utf-8")


TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}<tool_call>{{ call['function'] | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def recipe(path: Path) -> None:
    """A complete recipe of a tiny run, with its text and teacher beside it."""
    folder = path.parent
    text_folder(folder / "text")
    if not (folder / "models" / "teacher").is_dir():
        teacher(folder / "models" / "teacher", layers=2)
    settings = {
        "name": path.stem,
        "corpus": {"sources": [{"kind": "text", "path": "text", "licence": "PSF-2.0"}]},
        "teacher": {"kind": "huggingface", "name": "models/teacher"},
        "student": {"kind": "shrink", "layers": 1},
        "baseline": False,
        "export": {"gguf": ["F16"]},
        "chat": {"prompt": None},
        "terms": {"decisions": [OWN | {"subject": "teacher"}, OWN | {"subject": "student"}]},
    }
    path.write_text(with_changes(yaml.safe_dump(settings), ("tiny",)), encoding="utf-8")


def gguf(path: Path) -> None:
    """A tiny Llama as a GGUF file."""
    from stillroom.formats.gguf_file import write_gguf

    folder = path.parent / f"{path.stem}-source"
    teacher(folder, layers=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(folder, path, "F32", name=path.stem, licence="MIT")


def endpoint(path: Path) -> Any:
    """A server of llama.cpp; its tokenizer's folder is `models/my-model` beside the page's recipe."""
    from teachers.served import llama_server

    work = next(parent for parent in path.parents if parent.name == "work")
    file = work / "models" / "my-model.gguf"
    gguf(file)
    (work / "models" / "my-model-source").rename(work / "models" / "my-model")
    return llama_server(file)


@functools.cache
def _finished(folder: Path) -> Path:
    from stillroom.pipeline import run as do

    text_folder(folder / "handbook")
    teacher(folder / "teacher", layers=2)
    settings = {
        "name": "handbook",
        "corpus": {"sources": [{"kind": "text", "path": str(folder / "handbook"), "licence": "PSF-2.0"}]},
        "teacher": {"kind": "huggingface", "name": str(folder / "teacher")},
        "student": {"kind": "shrink", "layers": 1},
        "baseline": False,
        "export": {"gguf": ["F16"], "onnx": True},
        "chat": {"prompt": None},
        "terms": {"decisions": [OWN | {"subject": "teacher"}, OWN | {"subject": "student"}]},
    }
    recipe = yaml.safe_load(with_changes(yaml.safe_dump(settings), ("tiny", "seed=null", "corpus.train_tokens=4096")))
    return Path(do(recipe, folder / "runs", quiet=True).path)


def _finished_folder() -> Path:
    import tempfile

    return _finished(Path(tempfile.gettempdir()) / f"stillroom-pages-{os.getpid()}")


def finished_run(path: Path) -> None:
    """A finished run with GGUF, ONNX and no seed; made once."""
    import shutil

    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(_finished_folder(), path)


def suspect(path: Path) -> None:
    """A model that was made by the run of the fixture `run`: its student, as a folder or as a GGUF file."""
    import shutil

    made = _finished_folder()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gguf":
        shutil.copy(next((made / "export").glob("*.gguf")), path)
    else:
        shutil.copytree(made / "distill" / "model", path)


def controls(path: Path) -> None:
    """Forty models that have nothing to do with the run."""
    for number in range(40):
        teacher(path / f"{number:02}", layers=1, seed=100 + number)


def lines(path: Path, text: str) -> None:
    """A file of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


TWINS = "".join(
    json.dumps({"prompt": f"What is {number}?", "answers": [f"It is {number}.", f"That is {number}."]}) + "\n"
    for number in range(40)
)
FIXTURES: dict[str, Callable[[Path], Any]] = {
    "text": text_folder,
    "chats": chat_rows,
    "teacher": teacher,
    "teacher with tools": tool_teacher,
    "another teacher": lambda path: teacher(path, seed=1),
    "student": lambda path: teacher(path, layers=2, seed=2),
    "student with another tokenizer": lambda path: teacher(path, layers=2, vocabulary_size=400, seed=2),
    "gguf": gguf,
    "endpoint": endpoint,
    "recipe": recipe,
    "suspect": suspect,
    "controls": controls,
    "twin answers": lambda path: lines(path, TWINS),
    "accounts": lambda path: lines(path, "alice\nbob\n"),
    "prompts": lambda path: lines(path, "".join(f"What is {number}?\n" for number in range(40))),
    "answers": lambda path: lines(path, "A list is a sequence of values. " * 40),
    "run": finished_run,
    "other text": other_text,
    "more text": lambda path: other_text(path, 1600),
    "chats with tools": tool_rows,
}
