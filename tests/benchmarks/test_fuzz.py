"""What fuzzing counts: errors and memory of the parser, not that the benchmark itself is ended."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import fuzz


def thrower(error: type[BaseException]) -> fuzz.Parser:
    """A parser that accepts its seed alone."""

    def parse(data: bytes) -> object:
        if data != b"seed":
            raise error("no")
        return data

    return fuzz.Parser(parse, (b"seed",), lambda rng, data, seeds: b"other")


class Panic(BaseException):
    """As libraries in Rust raise it."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_that_the_benchmark_is_ended_is_no_escape(error: type[BaseException]) -> None:
    with pytest.raises(error):
        fuzz.throw({"a": thrower(error)}, 3)


def test_every_other_error_is_an_escape() -> None:
    assert fuzz.throw({"a": thrower(Panic), "b": thrower(ValueError)}, 3)["escapes"] == 6


def test_memory_is_what_this_process_gained_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks: Iterator[int] = iter([1_000_000, 1_004_096])
    monkeypatch.setattr(fuzz, "own_peak_bytes", lambda: next(peaks))
    parser = fuzz.Parser(len, (b"seed",), lambda rng, data, seeds: data)
    assert fuzz.throw({"a": parser}, 1)["memory_gained_bytes"] == 4096


def test_no_benchmark_takes_its_peak_from_the_process_that_started_it() -> None:
    folder = Path(fuzz.__file__).parent
    paths = [path for path in folder.glob("*.py") if path.name != "budget.py"]
    assert [path.name for path in paths if "ru_maxrss" in path.read_text(encoding="utf-8")] == []
