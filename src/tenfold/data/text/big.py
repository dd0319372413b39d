"""Cleaning and deduplication of a corpus that is too large for one machine, with `datatrove`.

One pipeline of five stages, for datatrove's local, Slurm and Ray executors. Documents are read and filtered in parallel tasks, by
the same code as in `tenfold data build`; near copies are found by MinHash over the same word 5-grams, in `BUCKETS` bands of
`HASHES` hashes (as for FineWeb; two documents of similarity 0.8 share a band with probability 0.92), and one document of each
cluster is kept. The result is Parquet, which `tenfold data build` reads. Unlike there, clusters are transitive, and documents
that share a band are not compared further.
"""

import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.data.fingerprint import listing_of
from tenfold.data.text.dedup import word_shingles
from tenfold.data.text.filters import chosen, quality_problem
from tenfold.data.text.options import ReadOptions
from tenfold.data.text.sources import check_columns, files_in, files_of, read_documents
from tenfold.spec.errors import NotInstalled, TenfoldError
from tenfold.spec.files import read_facts, write_json
from tenfold.spec.plugins import load

BUCKETS, HASHES = 14, 8
# datatrove's executors, by the names of the launchers that they correspond to
EXECUTORS = {
    "local": "datatrove.executor:LocalPipelineExecutor",
    "slurm": "datatrove.executor:SlurmPipelineExecutor",
    "ray": "datatrove.executor.ray:RayPipelineExecutor",
}


def clean_big(
    source: Path,
    out: Path,
    *,
    on: str = "local",
    tasks: int = 1,
    options: ReadOptions = ReadOptions(),
    partition: str = "",
    limit: str = "24:00:00",
) -> None:
    """Clean and deduplicate the files in the folder `source` to `out/clean/*.parquet`, in `tasks` tasks per stage.

    `on` is the name of a launcher. The stages' results are kept in `out`, so that finished tasks are not run again. On Slurm the
    jobs are submitted, each stage waiting for the one before, with the time limit `limit` (hours:minutes:seconds); elsewhere the
    call returns when all stages are done. Raises TenfoldError for impossible options, other input than that of earlier stages in
    `out`, and (except on Slurm) if no usable text is left.
    """
    try:
        from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
        from datatrove.pipeline.readers import ParquetReader
        from datatrove.pipeline.writers import ParquetWriter
    except ImportError as error:
        raise NotInstalled(f"Cleaning in many tasks needs datatrove: pip install 'tenfold[bigdata]' ({error}).") from None
    if on not in EXECUTORS:
        load("launchers", on)  # raises a TenfoldError for an unknown launcher
        raise TenfoldError(f"datatrove does not run on {on!r}: choose one of {', '.join(EXECUTORS)}.")
    if on == "slurm" and not partition:
        raise TenfoldError("Slurm needs to know where to run: give --partition.")
    if tasks < 1:
        raise TenfoldError(f"A pipeline needs at least one task, not {tasks}.")
    if not source.is_dir():
        raise TenfoldError(f"{source} is not a folder: give a folder of text files, which the tasks divide among them.")
    out = out.resolve()
    chosen(options.filters)
    check_columns(source, options.text_column)
    _require_same(out, {"listing": listing_of(files_in(source))[0], **options.recipe, "tasks": tasks})
    config = minhash_config()
    folder = {name: str(out / name) for name in ("filtered", "signatures", "buckets", "copies", "clean")}
    stages: list[tuple[str, int, list[Any]]] = [
        (
            "filter",
            tasks,
            [Read(source.resolve(), options), Filter(out / "dropped", options.filters), ParquetWriter(folder["filtered"])],
        ),
        ("signatures", tasks, [ParquetReader(folder["filtered"]), signature_step(folder["signatures"])]),
        ("buckets", BUCKETS, [MinhashDedupBuckets(folder["signatures"], folder["buckets"], config=config)]),
        ("cluster", 1, [MinhashDedupCluster(folder["buckets"], folder["copies"], config=config)]),
        ("clean", tasks, [ParquetReader(folder["filtered"]), MinhashDedupFilter(folder["copies"]), ParquetWriter(folder["clean"])]),
    ]
    executor = pkgutil.resolve_name(EXECUTORS[on])
    job = {"time": limit, "partition": partition} if on == "slurm" else {}
    before: Any = None
    for name, count, steps in stages:
        more = job | ({"job_name": f"tenfold-{name}"} if on == "slurm" else {})
        before = executor(steps, tasks=count, logging_dir=str(out / "logs" / name), depends=before, **more)
        if name == "filter" and on != "slurm":
            before.run()
            if not any(Path(folder["filtered"]).glob("*")):
                raise TenfoldError(f"{source} has no usable text: see {out / 'dropped'} for what was left out.")
    before.run()  # runs the stages that it depends on first


def _require_same(out: Path, recipe: dict[str, Any]) -> None:
    """Record what is cleaned. Raises TenfoldError if `out` has stages of other input, since finished stages are not run again."""
    if (out / "logs").exists() and read_facts(out / "recipe.json") != recipe:
        raise TenfoldError(
            f"{out} has stages of other text, of other options or of another number of tasks: choose another folder."
        )
    write_json(out / "recipe.json", recipe)


def minhash_config() -> Any:
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.hashing import HashConfig

    return MinhashConfig(num_buckets=BUCKETS, hashes_per_bucket=HASHES, hash_config=HashConfig(precision=64, hash_fc="sha1"))


class Read:
    """A step of the pipeline: reads every `world_size`-th file. A document that cannot be read has a `problem` in its metadata."""

    def __init__(self, source: Path, options: ReadOptions) -> None:
        self.source, self.options = source, options

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        from datatrove.data import Document

        for number, file in enumerate(files_of(self.source)):
            if number % world_size == rank:
                for document in read_documents(file, self.options):
                    text = document.text or " "  # datatrove refuses a document without text
                    yield Document(text=text, id=document.name, metadata={"problem": document.problem})


class Filter:
    """A step of the pipeline: drops what `tenfold data build` drops, and writes to `out/RANK.json` how many for each reason."""

    def __init__(self, out: Path, filters: str) -> None:
        self.out, self.filters = out, filters

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        dropped: dict[str, int] = {}
        for document in data:
            problem = document.metadata.pop("problem") or quality_problem(document.text, self.filters)
            if problem:
                dropped[problem] = dropped.get(problem, 0) + 1
            else:
                yield document
        write_json(self.out / f"{rank:05}.json", dropped)


def signature_step(folder: str) -> Any:
    """datatrove's step for MinHash signatures, over the word 5-grams of `data.text.dedup`."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature
    from datatrove.utils.word_tokenizers import WordTokenizer

    class NoWords(WordTokenizer):
        """Not used, as `data.text.dedup` finds the words; datatrove's own tokenizers would need further packages."""

        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    class Signature(MinhashDedupSignature):
        def get_shingles(self, text: str) -> np.ndarray:
            return word_shingles(text.encode("utf-8", "replace")).reshape(-1, 1)

    return Signature(folder, config=minhash_config(), language=NoWords())
