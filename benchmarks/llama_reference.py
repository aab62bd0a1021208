"""llama.cpp's own quantisation of a whole file, for comparison.

Run as a process of its own: ``python benchmarks/llama_reference.py LIBLLAMA SOURCE TARGET FILE_TYPE [IMPORTANCE.npz]``.
LIBLLAMA is llama.cpp's shared library, from a wheel (`llama-cpp-py-sync`, `llama-cpp-python`) or built from its source with
``cmake -B build -DBUILD_SHARED_LIBS=ON && cmake --build build --target llama``.
"""

from __future__ import annotations

import ctypes
import sys


class Importance(ctypes.Structure):
    """``llama_model_imatrix_data``: one tensor's column weights."""

    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


class Parameters(ctypes.Structure):
    """``llama_model_quantize_params``; newer libraries have one field more at its end."""

    _fields_ = (
        ("threads", ctypes.c_int32),
        ("file_type", ctypes.c_int),
        ("output_type", ctypes.c_int),
        ("embedding_type", ctypes.c_int),
        ("allow_requantize", ctypes.c_bool),
        ("quantize_output", ctypes.c_bool),
        ("only_copy", ctypes.c_bool),
        ("pure", ctypes.c_bool),
        ("keep_split", ctypes.c_bool),
        ("dry_run", ctypes.c_bool),
        ("importance", ctypes.POINTER(Importance)),
        ("overrides", ctypes.c_void_p),
        ("tensor_overrides", ctypes.c_void_p),
        ("pruned", ctypes.c_void_p),
        ("newer", ctypes.c_size_t * 4),
    )


def main() -> int:
    """Quantise SOURCE (F32) to TARGET; the importance file holds a vector a tensor's name."""
    import numpy as np

    library, source, target, file_type = sys.argv[1:5]
    lib = ctypes.CDLL(library)
    lib.llama_backend_init()
    lib.llama_model_quantize_default_params.restype = Parameters
    parameters = lib.llama_model_quantize_default_params()
    parameters.file_type, parameters.threads = int(file_type), 1
    alive = []
    if len(sys.argv) > 5:
        weights = np.load(sys.argv[5])
        entries = (Importance * (len(weights.files) + 1))()
        for entry, name in zip(entries, weights.files, strict=False):
            data = np.ascontiguousarray(weights[name], dtype=np.float32)
            alive.append(data)
            entry.name, entry.data, entry.size = name.encode(), data.ctypes.data, data.size
        parameters.importance = entries
    return int(lib.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)))


if __name__ == "__main__":
    sys.exit(main())
