"""Read a source, filter and deduplicate its documents, and divide them into two splits."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress, TimeElapsedColumn

from tenfold.data.text.dedup import copies, near_copies
from tenfold.data.text.filters import quality_problem
from tenfold.data.text.options import TextOptions
from tenfold.data.text.sources import read_documents
from tenfold.data.text.spool import Spool
from tenfold.spec.errors import TenfoldError
from tenfold.spec.terminal import progress

VALIDATION_SHARE = 0.03  # of the documents
TOKENIZER_SAMPLE_BYTES = 16 * 2**20  # of text on which a tokenizer is trained


def clean(source: str | Path, spool: Spool, options: TextOptions, quiet: bool) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Clean `source` into `spool`. Returns the spool's records for each split, and a report of what was read, dropped and kept.

    Raises TenfoldError if fewer than two documents are left.
    """
    report = _read(source, spool, options, quiet)
    kept = _without_copies(spool, options.dedup, report["dropped"])
    report |= {"kept_documents": len(kept), "kept_bytes": int(kept["bytes"].sum(dtype=np.int64))}
    return _split(source, kept, report["dropped"]), report


def sample(spool: Spool, documents: np.ndarray) -> Iterator[str]:
    """The text to train a tokenizer on: the first documents. They are a random sample, since documents are sorted by hash."""
    given = 0
    for text in spool.texts(documents):
        yield text.decode("utf-8")
        given += len(text)
        if given >= TOKENIZER_SAMPLE_BYTES:
            return


def progress_bar(quiet: bool) -> Progress:
    """A progress bar with a description and a speed; nothing is shown without a terminal."""
    return progress(TimeElapsedColumn(), field="speed", quiet=quiet)


def _read(source: str | Path, spool: Spool, options: TextOptions, quiet: bool) -> dict[str, Any]:
    """Add the documents that pass the filters to the spool; returns how many were read, and dropped for each reason."""
    dropped: dict[str, dict[str, Any]] = {}
    documents = size = 0
    began = time.perf_counter()
    with progress_bar(quiet) as bar:
        task = bar.add_task("cleaning", total=None, speed="")
        for document in read_documents(source, options):
            text = document.text.encode("utf-8", "replace")
            documents += 1
            size += len(text)
            rate = size / 1e6 / (time.perf_counter() - began)
            bar.update(task, description=f"cleaning {size / 1e6:.0f} MB", speed=f"{rate:.1f} MB/s")
            problem = document.problem or quality_problem(document.text, options.filters)
            if problem:
                entry = dropped.setdefault(problem, {"documents": 0, "bytes": 0, "example": document.name})
                entry["documents"] += 1
                entry["bytes"] += len(text)
            else:
                spool.add(document.name, text)
    return {"documents": documents, "bytes": size, "dropped": dropped}


def _without_copies(spool: Spool, dedup: str, dropped: dict[str, dict[str, Any]]) -> np.ndarray:
    """The records of the documents that are kept by `dedup`, sorted by key; the copies are counted in `dropped`."""
    records = spool.records()
    none = np.zeros(len(records), dtype=bool)
    exact = none if dedup == "none" else copies(records["key"])
    near = near_copies(spool.signatures, ~exact) if dedup == "near" else none
    for problem, found in (("exact copy", exact), ("near copy", near)):
        if found.any():
            first = records[np.argmax(found)]
            size = int(records["bytes"][found].sum(dtype=np.int64))
            dropped[problem] = {"documents": int(found.sum()), "bytes": size, "example": spool.name(first)}
    kept = records[~(exact | near)]
    return kept[np.argsort(kept["key"], kind="stable")]


def _split(source: str | Path, documents: np.ndarray, dropped: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """The records of each split. Validation has the smallest keys: `VALIDATION_SHARE` of the documents, and at least one."""
    if not len(documents):
        why = ", ".join(f"{entry['documents']} {problem}" for problem, entry in dropped.items()) or "it has no files"
        raise TenfoldError(f"The corpus {str(source)!r} has no usable text: {why}.")
    if len(documents) < 2:
        raise TenfoldError(
            f"The corpus {str(source)!r} has only one usable document, too few to keep some for validation: add documents, "
            "or divide long ones."
        )
    validation = max(1, int(np.searchsorted(documents["key"], int(VALIDATION_SHARE * 2**64))))
    validation = min(validation, len(documents) - 1)
    return {"train": documents[validation:], "validation": documents[:validation]}
