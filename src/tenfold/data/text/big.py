"""Cleaning and deduplication of a corpus that one machine cannot hold, on `datatrove`.

One pipeline in four stages, for its local, Slurm and Ray executors: documents are read and filtered by the same code as
`tenfold data build` uses, in parallel tasks; near copies are found by MinHash over the same word 5-grams, in `BUCKETS` bands
of `HASHES` (FineWeb's; a pair of similarity 0.8 shares one with probability 0.92), and one document of each cluster stays.
What comes out is Parquet, which `tenfold data build` reads. Unlike there, clusters are transitive and similarity is not
checked once more after a band is shared.
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
# datatrove's executors by the names of our launchers that they correspond to
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
    """Clean and deduplicate the files below `source` to `out/clean/*.parquet`, in `tasks` tasks a stage.

    `on` is a launcher's name. Between the stages everything lies in `out`; a stage's tasks that are done are not done again.
    On Slurm the jobs are submitted and wait for one another; on the others the call returns when all is done. Raises
    TenfoldError.
    """
    try:
        from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
        from datatrove.pipeline.readers import ParquetReader
        from datatrove.pipeline.writers import ParquetWriter
    except ImportError as error:
        raise NotInstalled(f"Cleaning in many tasks needs datatrove: pip install 'tenfold[bigdata]' ({error}).") from None
    if on not in EXECUTORS:
        load("launchers", on)  # raises its own error for an unknown launcher
        raise TenfoldError(f"datatrove does not run on {on!r}: say {', '.join(EXECUTORS)}.")
    if on == "slurm" and not partition:
        raise TenfoldError("Slurm needs to know where to run: say --partition.")
    if tasks < 1:
        raise TenfoldError(f"A pipeline needs at least one task, not {tasks}.")
    if not source.is_dir():
        raise TenfoldError(f"{source} is no folder: a corpus for many tasks is a folder of files that they share.")
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
                raise TenfoldError(f"{source} has no usable text: {out / 'dropped'} says what was left out.")
    before.run()  # runs the stages that it depends on first


def _require_same(out: Path, recipe: dict[str, Any]) -> None:
    """Note what is cleaned. Raises TenfoldError where `out` has stages of other input, since finished stages are not run again."""
    if (out / "logs").exists() and read_facts(out / "recipe.json") != recipe:
        raise TenfoldError(
            f"{out} has stages of other text, or read otherwise or in another number of tasks: choose another folder."
        )
    write_json(out / "recipe.json", recipe)


def minhash_config() -> Any:
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.hashing import HashConfig

    return MinhashConfig(num_buckets=BUCKETS, hashes_per_bucket=HASHES, hash_config=HashConfig(precision=64, hash_fc="sha1"))


class Read:
    """The documents of every `world_size`-th file, as datatrove takes them; what cannot be read comes with its problem."""

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
    """Drops what `tenfold data build` drops, and counts it in `out/RANK.json`: documents for each reason."""

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
    """datatrove's MinHash signatures, over the word 5-grams of `data.copies`."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature
    from datatrove.utils.word_tokenizers import WordTokenizer

    class NoWords(WordTokenizer):
        """Words are found by `data.copies`; datatrove's own tokenizers need further packages."""

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
