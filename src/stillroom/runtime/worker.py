"""The process that holds one model: it gives up what it can, loads, and answers on a local socket in a private folder.

Run by :mod:`stillroom.runtime.engine` as ``python -m stillroom.runtime.worker``. Its settings come as one line of JSON on
standard input; when that input ends, its parent is gone, and so is it.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path
from typing import IO, Any

from stillroom.core.memory import release_memory
from stillroom.core.waiting import readable

SOCKET = "engine.sock"
RELEASE_SECONDS = 5.0


def main() -> None:
    """The child's life."""
    import signal

    # Ctrl-C is for the parent. An order to end needs no thought: there is nothing to be saved here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The library writes where it likes; the two messages go through a handle that it does not know.
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    settings = json.loads(sys.stdin.readline())
    _end_with_parent()
    try:
        _require_on()
        server, report = _start(settings)
    except BaseException as error:
        _say(messages, failed=str(error) or type(error).__name__)
        os._exit(1)
    _say(messages, ready=True, confined=report)
    assert server is not None
    _wait_for_the_end()
    # Nothing is given back in order: the model may be in the middle of a long prompt, for a parent that is gone.
    os._exit(0)


def _require_on() -> None:
    """Whatever starts an engine, the user's own switch is asked."""
    from stillroom.switch import require_on

    require_on()


def _end_with_parent() -> None:
    """Have the system end this process as soon as its parent is gone, whatever it computes or loads then.

    Standard input is a pipe whose other end only the parent holds. On Linux its closing sends SIGIO, which ends a process
    that does not handle it; no code of this process has to run for that. The loop in :func:`_wait_for_the_end` does the
    same elsewhere, once the model is loaded.
    """
    if sys.platform.startswith("linux"):
        import fcntl
        import signal

        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
        # It may have gone just before.
        if readable(0, 0) and not os.read(0, 1):
            os._exit(1)


def _say(messages: IO[str], **values: object) -> None:
    messages.write(json.dumps(values) + "\n")
    messages.flush()


def _wait_for_the_end() -> None:
    """Until the parent is gone; meanwhile what requests left behind is given back to the system."""
    while not readable(0, RELEASE_SECONDS) or os.read(0, 1 << 16):
        release_memory()


def _start(settings: dict[str, Any]) -> tuple[Any, dict[str, str]]:
    folder, model = Path(settings["folder"]), Path(settings["model"]).resolve()
    import xllamacpp

    from stillroom.core.sandbox.confine import confine

    drafter = Path(settings["drafter"]).resolve() if settings.get("drafter") else None
    report = {}
    if settings["confine"]:
        system = ("/sys/devices/system", "/proc/cpuinfo", "/proc/meminfo", "/proc/self", "/dev/null", "/dev/urandom")
        needed = [model, *(Path(path) for path in system), *_shards(model)]
        needed += [] if drafter is None else [drafter, *_shards(drafter)]
        report = confine(needed, folder, settings["memory"])
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.n_ctx = settings["context"] * settings["parallel"]
    parameters.n_parallel = settings["parallel"]
    parameters.n_batch = parameters.n_ubatch = settings["batch"]
    for processor in (parameters.cpuparams, parameters.cpuparams_batch):
        processor.n_threads = settings["threads"]
        # Waiting threads sleep: spinning ones starve each other on a busy machine.
        processor.poll = 0
    if drafter is not None:
        _draft(parameters, drafter, settings)
    if settings.get("exact"):
        # The KV cache in float32, and matrices computed as the file has them: on CPUs with AMX llama.cpp repacks them into
        # another layout, with other rounding.
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.no_extra_bufts = True
    parameters.embedding = settings["embedding"]
    parameters.cache_ram_mib = 0
    parameters.cache_idle_slots = False
    # Layers that see a window keep the whole context all the same, and no state is put back from checkpoints: llama.cpp
    # takes those of an earlier text that began otherwise, and answers from them.
    parameters.swa_full = True
    parameters.n_ctx_checkpoints = 0
    parameters.warmup = False
    parameters.ui = False
    parameters.timeout_read = parameters.timeout_write = 3600
    parameters.slot_save_path = f"{folder}/"
    # A local socket in a folder that only this user can enter, and a key besides.
    parameters.hostnames = [str(folder / SOCKET)]
    parameters.api_keys = [settings["key"] or secrets.token_hex(32)]
    return xllamacpp.Server(parameters), report


def _draft(parameters: Any, drafter: Path, settings: dict[str, Any]) -> None:
    """Have a smaller model draft, which the large one accepts or not: what is written is the large one's alone."""
    import xllamacpp

    speculative = parameters.speculative
    speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    draft = speculative.draft
    draft.mparams.path = str(drafter)
    draft.n_max = settings["drafts"]
    for processor in (draft.cpuparams, draft.cpuparams_batch):
        processor.n_threads = settings["threads"]
        processor.poll = 0


def _shards(model: Path) -> list[Path]:
    """The other parts of a model that was split into several files."""
    if "-of-" not in model.name:
        return []
    return sorted(model.parent.glob(f"{model.name.rpartition('-of-')[0].rpartition('-')[0]}-*-of-*.gguf"))


if __name__ == "__main__":
    main()
