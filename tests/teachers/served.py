"""A GGUF file served by llama.cpp on a loopback port, in a process of its own: what an endpoint is for the tests."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

PROGRAM = """
import json, socket, sys
import xllamacpp
path, parallel = sys.argv[1], int(sys.argv[2])
free = socket.socket()
free.bind(("127.0.0.1", 0))
port = free.getsockname()[1]
free.close()
parameters = xllamacpp.CommonParams()
parameters.model.path = path
parameters.n_ctx = 512 * parallel
parameters.n_parallel = parallel
parameters.n_batch = parameters.n_ubatch = 256
for processor in (parameters.cpuparams, parameters.cpuparams_batch):
    processor.n_threads = 1
    processor.poll = 0
parameters.warmup = False
parameters.ui = False
parameters.cache_ram_mib = 0
parameters.cache_idle_slots = False
parameters.swa_full = True
parameters.n_ctx_checkpoints = 0
parameters.hostnames = ["127.0.0.1"]
parameters.port = port
server = xllamacpp.Server(parameters)
print(json.dumps({"port": port}), flush=True)
sys.stdin.read()
import os
os._exit(0)
"""


@contextlib.contextmanager
def llama_server(gguf: Path, parallel: int = 2) -> Iterator[str]:
    """The address of a server of this file."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(gguf), str(parallel)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        address = ""
        for line in process.stdout:
            if line.startswith("{"):
                address = f"http://127.0.0.1:{json.loads(line)['port']}"
                break
        assert address, "the server did not start"
        for _ in range(200):
            with contextlib.suppress(urllib.error.URLError, OSError):
                if urllib.request.urlopen(f"{address}/health", timeout=5).status == 200:
                    break
            time.sleep(0.05)
        yield address
    finally:
        process.stdin.close()
        process.kill()
        process.wait()


def tiny_endpoint(folder: Path, *, seed: int = 0, layers: int = 2) -> tuple[Path, Path]:
    """A tiny Llama as a Hugging Face folder, and as a GGUF file in float32."""
    from tiny_models import tiny_model

    from stillroom.formats.gguf_file import write_gguf

    teacher = tiny_model("llama", folder / "teacher", layers=layers, seed=seed)
    write_gguf(teacher, folder / "teacher.gguf", "F32", name="tiny", licence="MIT")
    return teacher, folder / "teacher.gguf"
