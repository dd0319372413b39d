"""A corpus in an object store: the files of a corpus at an `fsspec` address (`s3://`, `gs://`, `file://`, `memory://`).

The rows of each step are the same as from a local corpus. A split that fits in the local cache is mirrored there, block by block as
it is read. Of a larger split only the rows that are asked for are fetched, and they are not kept: rows come in random order, so a
cache much smaller than the split would seldom hold the right ones.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from tenfold.data.text.corpus import Corpus, open_corpus, read_manifest
from tenfold.data.text.shards import Shards
from tenfold.spec.errors import NotInstalled, TenfoldError
from tenfold.spec.files import atomic_file, make_folder, writable

CACHE_BYTES = 16 * 2**30  # for the mirrors of a corpus
BLOCK_BYTES = 2**20  # of a mirror, fetched at a time
CONNECTIONS = 128  # to the store at a time


def is_remote(source: str | Path) -> bool:
    """Whether `source` is the address of a store, and not a folder or a name."""
    return "://" in str(source)


@dataclass(frozen=True)
class RemoteCorpus(Corpus):
    """A corpus at `url`. The local `directory` holds its small files, and mirrors of up to `cache_bytes`."""

    url: str = ""
    cache_bytes: int = CACHE_BYTES

    @property
    def is_remote(self) -> bool:
        return True

    def __reduce__(self) -> Any:
        return open_remote, (self.url, self.directory.parent, self.cache_bytes)

    @cached_property
    def _shards(self) -> dict[str, Any]:
        store = Store(self.url)
        shards, room = {}, self.cache_bytes
        for split in ("validation", "train"):  # validation is read again and again, so it is mirrored first
            tokens = Tokens(
                split, np.dtype(self.manifest["dtype"]), self.manifest["shard_tokens"], self.manifest["splits"][split]["tokens"]
            )
            fits = tokens.size_bytes <= room
            room -= tokens.size_bytes if fits else 0
            shards[split] = MirroredShards(store, tokens, self.directory) if fits else RemoteShards(store, tokens)
        return shards


def open_remote(url: str, cache: Path, cache_bytes: int = CACHE_BYTES) -> RemoteCorpus:
    """Open the corpus at `url`, with its local files in a folder of its own in `cache`.

    Raises TenfoldError if the store does not answer, or holds no corpus at this address.
    """
    url = url.rstrip("/")
    with _explained(url):
        filesystem, root = _filesystem(url)
        try:
            written = filesystem.cat_file(f"{root}/manifest.json")
        except FileNotFoundError:
            raise TenfoldError(
                f"{url} holds no corpus: make one with `tenfold data build`, and copy it with `tenfold data upload`."
            ) from None
        manifest = read_manifest(written, url)
        # The folder's name depends on the manifest, so another corpus at the same address gets another folder.
        directory = cache / f"remote-{url.rsplit('/', 1)[1]}-{hashlib.sha256(url.encode() + written).hexdigest()[:16]}"
        make_folder(directory)
        for name, facts in manifest["files"].items():  # all but the tokens
            if not name.endswith(".bin") and not (directory / name).exists():
                _write_whole(directory / name, _checked(filesystem.cat_file(f"{root}/{name}"), facts, f"{url}/{name}"))
    return RemoteCorpus(directory, manifest, url, cache_bytes)


def upload(directory: Path, url: str) -> None:
    """Copy a corpus to an address. The manifest comes last, so that the corpus is found only when it is complete.

    Raises TenfoldError if the store does not answer or refuses.
    """
    corpus = open_corpus(directory)
    with _explained(url):
        filesystem, root = _filesystem(url.rstrip("/"))
        if isinstance(filesystem, LocalFileSystem):  # in an object store this would make a bucket
            filesystem.makedirs(root, exist_ok=True)
        for name in [*corpus.manifest["files"], "manifest.json"]:
            filesystem.put_file(str(directory / name), f"{root}/{name}")


@dataclass(frozen=True)
class Tokens:
    """How the `total` tokens of a split are divided into files: `shard_tokens` in every file but the last."""

    split: str
    dtype: np.dtype
    shard_tokens: int
    total: int

    @property
    def size_bytes(self) -> int:
        return self.total * self.dtype.itemsize

    def file(self, shard: int) -> str:
        return f"{self.split}-{shard:05}.bin"

    def length(self, shard: int) -> int:
        """Bytes of a shard."""
        return min(self.shard_tokens, self.total - shard * self.shard_tokens) * self.dtype.itemsize


class RemoteShards:
    """The tokens of a split, with the interface of `data.text.shards.Shards`, fetched from the store on every access."""

    def __init__(self, store: "Store", tokens: Tokens) -> None:
        self._store, self._tokens = store, tokens

    def __len__(self) -> int:
        return self._tokens.total

    def __getitem__(self, positions: slice | np.ndarray) -> np.ndarray:
        if isinstance(positions, slice):
            positions = np.arange(*positions.indices(len(self)))
        if not positions.size:
            return np.empty(positions.shape, self._tokens.dtype)
        if not 0 <= int(positions.min()) <= int(positions.max()) < len(self):
            raise IndexError(f"The {self._tokens.split} split has {len(self)} tokens.")
        return self._read(positions)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self._tokens.dtype)

    def document(self, number: int) -> np.ndarray:
        return self[int(self.documents[number]) : int(self.documents[number + 1])]

    @cached_property
    def documents(self) -> np.ndarray:
        return np.frombuffer(self._store.whole(f"{self._tokens.split}-documents.bin"), np.int64)

    def _read(self, positions: np.ndarray) -> np.ndarray:
        """Fetch the tokens: one request for each run of consecutive positions, usually a row."""
        wanted, where = np.unique(positions, return_inverse=True)
        breaks = np.flatnonzero((np.diff(wanted) != 1) | (wanted[1:] % self._tokens.shard_tokens == 0)) + 1
        requests = []
        for run in np.split(wanted, breaks):
            shard, place = divmod(int(run[0]), self._tokens.shard_tokens)
            width = self._tokens.dtype.itemsize
            requests.append(self._store.ask(self._tokens.file(shard), place * width, len(run) * width))
        data = b"".join(request.result() for request in requests)
        return np.frombuffer(data, self._tokens.dtype)[where.reshape(positions.shape)]


class MirroredShards(RemoteShards):
    """The same, read from a mirror on local disk, into which missing blocks are fetched when they are needed.

    The mirror's files have their full lengths from the start, but are sparse: they occupy only what was fetched. Beside each is a
    `.have` file with a byte for each block, 1 if the block is there. Several threads and processes may use one mirror.
    """

    def __init__(self, store: "Store", tokens: Tokens, folder: Path) -> None:
        super().__init__(store, tokens)
        self._files, self._have = [], []
        for shard in range(-(-tokens.total // tokens.shard_tokens)):
            length = tokens.length(shard)
            path = folder / tokens.file(shard)
            self._files.append(_sized(path, length))
            have = _sized(path.with_suffix(".have"), -(-length // BLOCK_BYTES), reserved=True)
            self._have.append(np.memmap(have, np.uint8, "r+"))
        self._local = Shards(
            tuple(np.memmap(f, tokens.dtype, "r") for f in self._files), tokens.shard_tokens, np.empty(0, np.int64)
        )
        self._coming: dict[tuple[int, int], Future] = {}
        self._lock = threading.Lock()

    def _read(self, positions: np.ndarray) -> np.ndarray:
        shard, place = np.divmod(positions, self._tokens.shard_tokens)
        block = place * self._tokens.dtype.itemsize // BLOCK_BYTES
        # Each pair (shard, block) as one number: a shard has fewer blocks than tokens.
        wanted = np.unique(shard * self._tokens.shard_tokens + block)
        for future in [self._fetch(*divmod(int(pair), self._tokens.shard_tokens)) for pair in wanted]:
            if future:
                future.result()
        return self._local[positions]

    def _fetch(self, shard: int, block: int) -> Future | None:
        if self._have[shard][block]:
            return None
        with self._lock:  # the callback below does not take it: a block may leave `_coming` at any time
            future = self._coming.get((shard, block))
            if future is None:
                first = block * BLOCK_BYTES
                length = min(BLOCK_BYTES, self._tokens.length(shard) - first)
                keep = partial(self._keep, shard, block)
                self._coming[shard, block] = future = self._store.ask(self._tokens.file(shard), first, length, keep)
                future.add_done_callback(lambda _: self._coming.pop((shard, block), None))
            return future

    def _keep(self, shard: int, block: int, data: bytes) -> bytes:
        try:
            with self._files[shard].open("r+b") as file:
                file.seek(block * BLOCK_BYTES)
                file.write(data)
        except OSError as error:
            raise TenfoldError(
                f"A block of the corpus could not be kept in {self._files[shard]}: {error.strerror or error}; free some room, or "
                "lower cache_gib in [data]."
            ) from None
        self._have[shard][block] = 1
        return b""


class Store:
    """The files at an address, read by many requests at a time. Retries are left to the `fsspec` implementation."""

    def __init__(self, url: str) -> None:
        self._url = url
        with _explained(url):
            self._filesystem, self._root = _filesystem(url)
        self._pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="store")

    def ask(self, name: str, first: int, length: int, then: Callable[[bytes], bytes] | None = None) -> Future:
        """Fetch `length` bytes of a file from offset `first` on; `then`, if given, is called on them in the fetching thread."""
        return self._pool.submit(self._get, name, first, length, then)

    def whole(self, name: str) -> bytes:
        """The content of a file."""
        with _explained(self._url):
            return self._filesystem.cat_file(f"{self._root}/{name}")

    def _get(self, name: str, first: int, length: int, then: Callable[[bytes], bytes] | None) -> bytes:
        with _explained(self._url):
            data = self._filesystem.cat_file(f"{self._root}/{name}", start=first, end=first + length)
        if len(data) != length:
            raise TenfoldError(f"{self._url}/{name} is shorter than the manifest says: upload the corpus again.")
        return then(data) if then else data


def _filesystem(url: str) -> tuple[Any, str]:
    options = {"config_kwargs": {"max_pool_connections": CONNECTIONS}} if url.startswith("s3://") else {}
    return fsspec.core.url_to_fs(url, **options)


# By name, since the packages of the stores need not be installed.
_UNREACHABLE = {
    "EndpointConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ConnectionError",
    "ClientConnectorError",
    "HTTPClientError",
}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "ProfileNotFound"}


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn the exceptions of a store into a TenfoldError that says what to do."""
    try:
        yield
    except TenfoldError:
        raise
    except ImportError as error:
        raise NotInstalled(f"{url} needs a package that is not installed: pip install 'tenfold[bigdata]' ({error}).") from None
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & _NO_CREDENTIALS:
            why = f"there are no credentials for it ({error}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        elif isinstance(error, FileNotFoundError):
            why = "there is no such bucket or folder: check the address"
        elif isinstance(error, PermissionError):
            why = f"it refuses these credentials ({error}): check them and the bucket's policy"
        elif kinds & _UNREACHABLE or isinstance(error, ConnectionError | TimeoutError):
            why = f"it does not answer ({error}): check the network and the endpoint (AWS_ENDPOINT_URL)"
        elif isinstance(error, ValueError) and "rotocol" in str(error):
            why = f"{url.split('://')[0]!r} is no protocol that fsspec knows"
        elif isinstance(error, OSError):
            why = str(error)
        else:
            raise
        raise TenfoldError(f"{url} cannot be read or written: {why}.") from None


def _sized(path: Path, length: int, *, reserved: bool = False) -> Path:
    """The path of a file of `length` bytes, which is made, full of zeros, if it is missing.

    A file that is written through a memory map needs its room `reserved`: a process that writes to a map on a full disk is killed.
    """
    if not path.exists() or path.stat().st_size != length:
        with writable(path), path.open("ab") as file:
            file.truncate(length)
            if reserved and hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file.fileno(), 0, length)
    return path


def _write_whole(path: Path, data: bytes) -> None:
    with atomic_file(path) as scratch:
        scratch.write_bytes(data)


def _checked(data: bytes, facts: dict[str, Any], name: str) -> bytes:
    if hashlib.sha256(data).hexdigest() != facts["sha256"]:
        raise TenfoldError(f"{name} is damaged (its checksum differs): upload the corpus again.")
    return data
