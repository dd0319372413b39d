"""Throughput of the data loader from an object store with 200 ms of latency, compared with local disk.

    python -m bench.data.loader

There are two stores. `s3` is moto's S3 server in its own process, on the same cores, which waits before every answer (it is
written in Python, so with many requests its own work dominates). `files` are local files behind fsspec; every read waits as long.
Each case begins with an empty cache and reads the same steps as local disk. `step_ms` is the time that the consumer computes
between two batches, as an accelerator would; 0 requests batches as fast as possible. The first step, before which nothing was
prefetched, is reported separately (`first_batch_s`); `whole_share` includes it.
"""

import multiprocessing
import os
import tempfile
import time
from itertools import product
from pathlib import Path

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from bench.harness import Headline, Row, options, write_results


def serve(port: int, latency_s: float) -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, run_simple

    app = DomainDispatcherApplication(create_backend_app)

    def late(environment, respond):
        time.sleep(latency_s)
        return app(environment, respond)

    WSGIRequestHandler.log_request = lambda *_: None  # type: ignore[method-assign]
    run_simple("127.0.0.1", port, late, threaded=True)


class LateFiles(LocalFileSystem):
    """Local files whose every read waits `latency_s` first."""

    protocol = "late"
    latency_s = 0.0

    def cat_file(self, path, start=None, end=None, **kwargs):
        time.sleep(self.latency_s)
        return super().cat_file(path, start, end, **kwargs)


def wait_for_bucket(name: str) -> None:
    import boto3

    for _ in range(100):
        try:
            boto3.client("s3").create_bucket(Bucket=name)
            return
        except Exception:
            time.sleep(0.3)
    raise SystemExit("The server did not start.")


def measure(corpus, steps: int, step_ms: float, ahead: int, rows: dict) -> tuple[float, float, int]:
    """(seconds until the first batch, seconds of all others, a checksum of all tokens)."""
    from tenfold.data.text.batches import train_batch
    from tenfold.data.text.prefetch import Prefetch

    checksum = 0
    with Prefetch(lambda step: train_batch(corpus, step, **rows), steps, ahead=ahead) as batches:
        began = time.perf_counter()
        for step in range(steps):
            batch = batches(step)
            if step == 0:
                first = time.perf_counter() - began
            checksum = (checksum * 31 + int(batch.tokens.sum())) % 2**61
            time.sleep(step_ms / 1000)
        return first, time.perf_counter() - began - first, checksum


def headline(rows: list[Row]) -> Headline:
    shown = [r for r in rows if r["step_ms"] and r["store"] == "s3"]
    steps = " or ".join(f"{step:g}" for step in sorted({r["step_ms"] for r in shown}))
    low, high = min(r["share_of_local"] for r in shown), max(r["share_of_local"] for r in shown)
    what = f"loader behind {shown[0]['latency_ms']:g} ms, S3, mirrored or rows only, steps of {steps} ms: of the local throughput"
    yield what, f"{low:.0%} to {high:.0%}"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--latency-ms", type=float, default=200)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--step-ms", type=float, nargs="+", default=[200, 50, 0])
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--port", type=int, default=5599)
    given = parser.parse_args()
    from tenfold.data.text import corpus as corpus_module
    from tenfold.data.text.prefetch import AHEAD
    from tenfold.data.text.remote import open_remote, upload

    os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{given.port}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "tenfold", "AWS_SECRET_ACCESS_KEY": "tenfold"}
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(given.port, given.latency_ms / 1000), daemon=True)
    server.start()
    wait_for_bucket("texts")
    rows = {"batch_size": given.batch_size, "seq_len": given.seq_len, "seed": 0}
    results: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        corpus_module.SHARD_TOKENS = 2**20  # many shards
        local = corpus_module.build("stdlib", Path(scratch) / "local", vocab_size=2048)
        upload(local.directory, "s3://texts/stdlib")
        fsspec.register_implementation("late", LateFiles)
        LateFiles.latency_s = given.latency_ms / 1000
        stores = {"files": f"late://{local.directory}", "s3": "s3://texts/stdlib"}
        for step_ms in given.step_ms:
            _, beside, expected = measure(local, given.steps, step_ms, 0, rows)
            for (store, url), (kept, cache_bytes) in product(stores.items(), (("mirrored", 2**34), ("rows only", 0))):
                corpus = open_remote(url, Path(tempfile.mkdtemp(dir=scratch)), cache_bytes)
                first, others, found = measure(corpus, given.steps, step_ms, AHEAD, rows)
                assert found == expected, "other batches than from local disk"
                tokens = (given.steps - 1) * given.batch_size * given.seq_len
                results.append(
                    {
                        "store": store,
                        "kept": kept,
                        "latency_ms": given.latency_ms,
                        "step_ms": step_ms,
                        "tokens_per_s": tokens / others,
                        "local_tokens_per_s": tokens / beside,
                        "share_of_local": beside / others,
                        "whole_share": beside / (others + first),
                        "first_batch_s": first,
                        "steps": given.steps,
                        "corpus_mb": sum(f["bytes"] for f in local.manifest["files"].values()) / 1e6,
                        "load_of_the_machine": float(np.round(os.getloadavg()[0], 2)),
                    }
                )
                print(results[-1], flush=True)
    server.terminate()
    write_results("loader", results, headline(results))


if __name__ == "__main__":
    main()
