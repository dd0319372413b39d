"""The runner for Llama 3 on CPUs, compiled once on this machine from native.cpp; it needs a C++ compiler.

Sizes must be multiples of 16 (`fits`). On a processor with a matrix unit (AMX) a product with rows of prompts is the sum of three
products of bfloat16 halves, about as exact as float32, or one product if `weights` asks for rounded weights. Products with rows of
replies are computed in float32.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.model.llama import FeedForward, Llama, rope_table
from tenfold.model.quantised import GROUP
from tenfold.serve.runners.runner import BLOCK, ModelInput
from tenfold.serve.runners.weights import FORMATS, PANEL, Packed, pack
from tenfold.spec.model import ModelSpec
from tenfold.spec.threads import available_cores

_SOURCES = [Path(__file__).with_name(name) for name in ("native.cpp", "attention.h", "tiles.h", "products.h")]
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++17")


def fits(spec: ModelSpec) -> bool:
    """Whether the compiled step supports the shape."""
    return spec.family == "llama3" and not spec.has_biases and spec.dim % PANEL == 0 and spec.head_dim in range(PANEL, 257, PANEL)


@cache
def library() -> ctypes.CDLL | None:
    """The compiled step, from the user's cache directory or compiled now (some seconds); None without a working compiler."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return None
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    key = hashlib.sha256(b"".join((*(s.read_bytes() for s in _SOURCES), version, " ".join(_FLAGS).encode(), _processor())))
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tenfold"
    file = home / f"native-{key.hexdigest()[:16]}.so"
    try:
        if not file.exists():
            home.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=home) as scratch:
                built = Path(scratch) / "native.so"
                subprocess.run([compiler, *_FLAGS, "-o", str(built), str(_SOURCES[0])], capture_output=True, check=True)
                built.replace(file)
        found = ctypes.CDLL(str(file))
    except (OSError, subprocess.CalledProcessError):
        return None
    found.tenfold_forward.restype = found.tenfold_logits.restype = None
    return found


def _processor() -> bytes:
    """What -march=native depends on: the processor's model and features."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("model name", "flags"))})).encode()
    except OSError:
        return platform.processor().encode()


def _of_prompt(rows: ModelInput) -> np.ndarray:
    """Which rows belong to prompts, bool [rows]: the first `rows.prompts[i]` rows of sequence i."""
    ends = np.cumsum(rows.counts)
    within = np.arange(len(rows.tokens)) - np.repeat(ends - rows.counts, rows.counts)
    return within < np.repeat(np.array(rows.prompts or [0] * len(rows.counts)), rows.counts)


# The structures of native.cpp and products.h, field by field.


class _Matrix(ctypes.Structure):
    _fields_ = [(n, ctypes.c_void_p) for n in ("data", "scales", "leasts")] + [
        (n, ctypes.c_int32) for n in ("format", "outputs", "inputs")
    ]


class _Layer(ctypes.Structure):
    _fields_ = [(n, _Matrix) for n in ("wqkv", "wo", "w1", "w3", "w2")] + [
        (n, ctypes.c_void_p) for n in ("attention_norm", "ffn_norm")
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *[(n, ctypes.c_int32) for n in ("dim", "layers", "heads", "kv_heads", "head_dim", "ffn", "block", "products")],
        ("eps", ctypes.c_float),
        ("layer", ctypes.POINTER(_Layer)),
        *[(n, ctypes.c_void_p) for n in ("norm", "rope")],
        ("head", _Matrix),
        *[(n, ctypes.c_void_p) for n in ("keys", "values")],
        ("layer_size", ctypes.c_int64),
    ]


class NativeRunner:
    """A `Runner` whose results for a row are bitwise the same in any batch, and however a prompt is divided into steps.

    `weights` is a format of `weights.py`; `threads` are all cores by default.
    """

    def __init__(self, model: Llama, n_blocks: int, weights: str = "exact", threads: int | None = None):
        found = library()
        assert found is not None and fits(model.spec)
        self._library, self.spec = found, model.spec
        self.threads = threads or available_cores()
        products = (3 if weights in ("exact", "float32") else 1) if found.tenfold_tiles() else 0
        self.tiles = products > 0
        self._rows = 0
        self._kept: list[Any] = []  # keeps the tensors alive that the structures point to
        self.embedding = model.embedding.weight.detach()
        self.formats: dict[str, int] = dict.fromkeys(FORMATS, 0)
        spec = self.spec
        size = n_blocks * spec.n_kv_heads * spec.head_dim * BLOCK
        self.ffn = spec.ffn_dim + -spec.ffn_dim % PANEL
        layers = (_Layer * spec.n_layers)()
        for ours, block in zip(layers, model.layers, strict=True):
            ffn = block.ffn
            assert isinstance(ffn, FeedForward)
            w2 = torch.nn.functional.pad(ffn.w2.weight.detach(), (0, self.ffn - spec.ffn_dim))
            ours.wqkv = self._matrix(pack(block.attention.wqkv.weight, weights))
            ours.wo = self._matrix(pack(block.attention.wo.weight, weights))
            ours.w1, ours.w3 = (self._matrix(pack(w.weight, weights)) for w in (ffn.w1, ffn.w3))
            ours.w2 = self._matrix(pack(w2, weights))
            ours.attention_norm = self._pointer(block.attention_norm.weight.detach().float())
            ours.ffn_norm = self._pointer(block.ffn_norm.weight.detach().float())
        # Rounding to four bits harms the output head more than a layer, so the head gets eight.
        head = pack(model.head.weight, "int8" if weights == "int4" else weights)
        self._model = _Model(
            spec.dim, spec.n_layers, spec.n_heads, spec.n_kv_heads, spec.head_dim, self.ffn, BLOCK, products,
            spec.norm_eps, layers, self._pointer(model.norm.weight.detach().float()),
            self._pointer(rope_table(spec, torch.arange(spec.context))), self._matrix(head),
            None, None, size,
        )  # fmt: skip
        self.wake_up()
        self._kept.append(layers)
        self.weight_bytes = sum(self.formats.values())

    def sleep(self) -> None:
        del self._cache
        self._model.keys = self._model.values = None

    def wake_up(self) -> None:
        self._cache = torch.zeros(2, self.spec.n_layers * self._model.layer_size)
        self._model.keys, self._model.values = (part.data_ptr() for part in self._cache)

    def hidden(self, rows: ModelInput) -> Tensor:
        n, spec = len(rows.tokens), self.spec
        lengths = np.array([len(t) for t in rows.tables], dtype=np.int32)
        starts = np.repeat(np.cumsum(lengths, dtype=np.int32) - lengths, rows.counts)
        tables = np.concatenate([np.asarray(table, dtype=np.int32) for table in rows.tables])
        tokens, positions = np.array(rows.tokens), np.array(rows.positions, dtype=np.int32)
        of_prompt = _of_prompt(rows) if self.tiles else np.zeros(n, dtype=bool)
        replies = n - int(of_prompt.sum())
        order = None
        if 0 < replies < n:
            order = of_prompt.argsort(kind="stable")
            tokens, positions, starts = tokens[order], positions[order], starts[order]
        x = torch.empty(n + PANEL - 1, spec.dim)
        x[:n] = self.embedding[torch.from_numpy(tokens)]
        addresses = [x.data_ptr(), *(a.ctypes.data for a in (positions, tables, starts)), *(t.data_ptr() for t in self._room(n))]
        self._library.tenfold_forward(ctypes.byref(self._model), n, replies, *map(ctypes.c_void_p, addresses), self.threads)
        return x[:n] if order is None else x[np.argsort(order)]

    def _room(self, rows: int) -> tuple[Tensor, ...]:
        """Scratch memory for a step of `rows` rows, kept for later steps, since the kernel must clear newly allocated pages."""
        if rows > self._rows:
            spec = self.spec
            mixed, room = spec.n_heads * spec.head_dim, rows + PANEL - 1
            per_row = spec.dim + 2 * (spec.n_kv_heads * spec.head_dim + mixed + self.ffn) + 4 * PANEL * self.threads
            packed = 2 * (room + 1) * (max(spec.dim, mixed, self.ffn) + GROUP) if self.tiles else 0
            self._scratch = torch.empty(room * per_row), *torch.empty(2, packed, dtype=torch.bfloat16)
            self._rows = rows
        return self._scratch

    def logits(self, hidden: Tensor) -> Tensor:
        hidden = hidden.contiguous()
        out = torch.empty(len(hidden), self._model.head.outputs)
        addresses = map(ctypes.c_void_p, (hidden.data_ptr(), out.data_ptr()))
        self._library.tenfold_logits(ctypes.byref(self._model), len(hidden), *addresses, self.threads)
        return out[:, : self.spec.vocab_size]

    def _pointer(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._kept.append(tensor := tensor.contiguous())
        return tensor.data_ptr()

    def _matrix(self, packed: Packed) -> _Matrix:
        self.formats[packed.format] += packed.bytes
        pointers = (self._pointer(t) for t in (packed.data, packed.scales, packed.leasts))
        return _Matrix(*pointers, FORMATS.index(packed.format), packed.outputs, packed.inputs)
