"""The models of a server: loaded on request, unloaded when least recently used, swapped, and split for A/B tests."""

import asyncio
import math
import time
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tenfold.model.io.huggingface import weights_hash
from tenfold.serve.api.budget import Budget, Place
from tenfold.serve.api.errors import ApiError, ModelNotLoaded
from tenfold.serve.api.metrics import Metrics
from tenfold.serve.api.served_model import ServedModel
from tenfold.serve.api.split import Split
from tenfold.serve.backends.backend import Backend, BackendStopped, SleepingBackend, make_backend
from tenfold.serve.options import EngineOptions, Limits, model_name
from tenfold.serve.request import Picture
from tenfold.serve.sandbox.sandbox import check_template
from tenfold.serve.text import TextSide, read_text_side
from tenfold.spec.errors import TenfoldError

Loader = Callable[[EngineOptions], Awaitable[tuple[TextSide, Backend]]]


async def load_model(options: EngineOptions, make: Callable[[EngineOptions], Backend] = make_backend) -> tuple[TextSide, Backend]:
    """Load a model: its text side, and its started backend. Raises TenfoldError if it cannot be loaded."""
    text = await asyncio.to_thread(read_text_side, options.path)
    await check_template(text)
    backend = make(options)
    try:
        await backend.start()
    except BaseException:  # also when the request that asked for the model is cancelled
        await asyncio.to_thread(backend.stop)
        raise
    return replace(text, limit=backend.max_model_len), backend


class Models:
    """The models of a server by name, with their adapters.

    The first answers requests that name no model, and with `any_name` requests for unknown names.
    """

    def __init__(self, options: dict[str, EngineOptions], limits: Limits, any_name: bool = False, load: Loader = load_model):
        self.options, self.limits, self.any_name, self.metrics = options, limits, any_name, Metrics()
        self.loaded: dict[str, ServedModel] = {}  # the least recently used first
        self.splits: dict[str, Split] = {}  # by the name of the model whose traffic is shared
        self.created = int(time.time())
        names = [*options, *(adapter for one in options.values() for adapter in one.adapters())]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise TenfoldError(
                f"{', '.join(twice)}: models and adapters need different names, and an adapter belongs to one model."
            )
        self.closing = self.draining = self.asleep = False
        self._load_parts = load
        self._load_lock, self._sleep_lock = asyncio.Lock(), asyncio.Lock()
        self._queues = {name: Budget(limits.max_queue, limits.key_share) for name in options}  # of unfinished sequences
        self._pictures = Budget(limits.max_image_bytes, limits.key_share)
        self._retiring: dict[asyncio.Task[None], ServedModel] = {}  # replaced models that finish their answers

    @property
    def parents(self) -> dict[str, str | None]:
        """All names that requests may use: those of adapters with the name of their model, and those of models with None."""
        adapters = {adapter: model for model, options in self.options.items() for adapter in options.adapters()}
        return {**dict.fromkeys(self.options), **adapters}

    def resolve(self, name: str) -> str:
        """The name of the model or adapter that answers requests for `name`. Raises ApiError 404 if there is none."""
        if name in self.parents:
            return name
        if not name or self.any_name:
            return next(iter(self.options))
        message = f"There is no model {name!r}: this server has {', '.join(self.parents)}."
        raise ApiError(404, message, code="model_not_found", param="model")

    def _swappable(self, name: str) -> str:
        """The name of a model that can be swapped. Raises ApiError for an adapter's name, and like `resolve`."""
        name = self.resolve(name)
        if name not in self.options:
            message = f"{name!r} is an adapter: name its model, {self.parents[name]!r}."
            raise ApiError(400, message, param="model")
        return name

    async def admit(self, name: str, place: Place, sequences: int, unit: str = "") -> ServedModel:
        """The model as `get` gives it, after taking `sequences` places in its queue for the request.

        The request holds them until it is answered, also while the model loads. Raises ApiError 400 or 429 if there are too few,
        and like `get`.
        """
        name = self.resolve(name)
        queue = self._queues[self.parents[name] or name]
        if sequences > queue.each:
            raise ApiError(400, f"The request asks for {sequences} answers at once: at most {queue.each} are allowed.")
        if not queue.has_room(place.owner, sequences):
            self.metrics.rejections.labels(name).inc()
            message = f"The queue is full, with at most {queue.most} unfinished answers, {queue.each} of one key: try again later."
            raise ApiError(429, message, retry_after=2)
        place.holds.enter_context(queue.holding(place.owner, sequences))
        return await self.get(name, unit)

    def hold_pictures(self, pictures: tuple[Picture, ...], place: Place) -> None:
        """Count the bytes of a request's images until it is answered. Raises ApiError 400 or 429 if there are too many."""
        size, budget = sum(picture.tiles.nbytes for picture in pictures), self._pictures
        if size > budget.each:
            raise ApiError(400, f"The pictures are too large together: at most {budget.each} bytes of pixels are allowed.")
        if not budget.has_room(place.owner, size):
            raise ApiError(429, "The pictures of all unanswered requests are too large together: try again later.", retry_after=2)
        place.holds.enter_context(budget.holding(place.owner, size))

    async def get(self, name: str, unit: str = "") -> ServedModel:
        """The model, which is loaded first if it is not. Models are loaded one at a time, while the loaded ones go on answering.

        If the model is split, the request's `unit` (`split.unit`) decides whether it is the candidate. Raises ApiError for an
        unknown model, or if the server shuts down or sleeps, and ModelNotLoaded if the model cannot be loaded.
        """
        self._require_open()
        name = self.resolve(name)
        if (parent := self.parents[name]) is not None:
            return (await self.get(parent)).with_adapter(name)
        if unit and (split := self.splits.get(name)) is not None and split.takes(unit):
            split.candidate.activity.used = time.monotonic()
            return split.candidate
        if (found := self._ready(name)) is not None:
            return found
        try:
            async with self._load_lock:
                if (found := self._ready(name)) is None:
                    await self._make_room()
                    found = self.loaded[name] = await self._load(name, self.options[name])
                return found
        except TenfoldError as error:
            raise ModelNotLoaded(str(error)) from None

    def _require_open(self) -> None:
        """Raises ApiError 503 if the server is shutting down or asleep."""
        if self.draining:
            raise ApiError(503, "The server is shutting down and takes no new requests.", retry_after=10)
        if self.asleep:
            raise ApiError(503, "The server is asleep: an operator wakes it up by POST /wake_up.", retry_after=10)

    def _require_loads(self) -> None:
        """Raises ApiError 503 if no further model may be loaded."""
        if self.closing:
            raise ApiError(503, "The server is shutting down and loads no further model.", retry_after=10)

    def _ready(self, name: str) -> ServedModel | None:
        """The loaded model if it can take a request, marked as the most recently used; None if it must be loaded."""
        found = self.loaded.get(name)
        if found is None or found.activity.leaving:
            return None
        if not found.backend.is_alive:
            self._retire(self._unload(name))
            return None
        found.activity.used = time.monotonic()
        self.loaded[name] = self.loaded.pop(name)
        return found

    def _unload(self, name: str) -> ServedModel:
        self.metrics.gone(name)
        return self.loaded.pop(name)

    async def _load(self, name: str, options: EngineOptions) -> ServedModel:
        self._require_loads()
        text, backend = await self._load_parts(options)
        return ServedModel(name, options, text, backend, self.limits, self.metrics)

    async def swap(self, name: str, path: Path) -> ServedModel:
        """Serve `name` from another path, without the old model's adapters. The old model finishes its running answers.

        This ends a split of `name`. If one of its two models has the new weights, that one takes over without being loaded again.
        Raises ApiError, and TenfoldError if the model cannot be loaded.
        """
        self._require_open()
        name = self._swappable(name)
        async with self._load_lock:
            new = await self._in_split(name, path) or await self._load(name, self.options[name].of(path))
            old, self.loaded[name], self.options[name] = self.loaded.get(name), new, new.options
            split = self.splits.pop(name, None)
        for gone in (old, split.candidate if split is not None else None):
            if gone is not None and gone is not new:
                self._retire(gone)
        if split is not None:
            self.metrics.gone(split.candidate.name)
            new.name = name
        return new

    async def _in_split(self, name: str, path: Path) -> ServedModel | None:
        """The one of a split's two models that has the weights at `path` and can take requests; None if there is none."""
        if (split := self.splits.get(name)) is None:
            return None
        weights, released = await asyncio.to_thread(weights_hash, path), self.loaded.get(name)
        found = split.candidate if split.checkpoint == weights else released
        if found is None or not found.backend.is_alive or found.activity.leaving:
            return None
        return found if found is split.candidate or await found.checkpoint() == weights else None

    async def split(self, name: str, path: Path, share: float) -> Split:
        """Let the model at `path`, the candidate, answer a share of the users of `name`.

        If it is the candidate already, only its share changes. Raises like `swap`.
        """
        name = self._swappable(name)
        await self.get(name)
        async with self._load_lock:
            weights, before = await asyncio.to_thread(weights_hash, path), self.splits.get(name)
            if before is not None and before.checkpoint == weights and before.candidate.backend.is_alive:
                before.share = share
                return before
            called = model_name(path)
            called = f"{called} (candidate)" if called in self.parents else called
            candidate = await self._load(called, self.options[name].of(path))
            if before is not None:
                self.metrics.gone(before.candidate.name)
                self._retire(before.candidate)
            self.splits[name] = Split(candidate, share, weights)
        return self.splits[name]

    @property
    def serving(self) -> list[ServedModel]:
        """All models in memory that take requests, including candidates."""
        return [*self.loaded.values(), *(split.candidate for split in self.splits.values())]

    async def sleep(self) -> None:
        """Refuse new requests, finish the accepted ones, and have the backends free their caches but keep their weights.

        Raises TenfoldError if a model's backend cannot sleep.
        """
        async with self._sleep_lock:
            if self.asleep:
                return
            self._alive_backends()
            self.asleep = True
            while self._is_answering():
                await asyncio.sleep(0.02)
            for backend in self._alive_backends():
                with suppress(BackendStopped):
                    await backend.sleep()

    async def wake_up(self) -> None:
        """Take requests again. The first model is loaded again if its backend has ended. Raises like `get`."""
        async with self._sleep_lock:
            if self.asleep:
                for backend in self._alive_backends():
                    with suppress(BackendStopped):
                        await backend.wake_up()
                self.asleep = False
        await self.get("")

    def _alive_backends(self) -> list[SleepingBackend]:
        """The backends that are alive. Raises TenfoldError if one of them cannot sleep."""
        alive = [model for model in self.serving if model.backend.is_alive]
        for model in alive:
            if not isinstance(model.backend, SleepingBackend):
                raise TenfoldError(f"The backend of {model.name} cannot sleep: stop this server instead.")
        return [model.backend for model in alive if isinstance(model.backend, SleepingBackend)]

    def _is_answering(self) -> bool:
        """Whether an accepted request is unanswered, a model is being loaded, or a replaced model has not been stopped."""
        waits = self._load_lock.locked() or any(not queue.is_free for queue in self._queues.values())
        return waits or bool(self._retiring) or any(model.backend.in_flight or model.activity.preparing for model in self.serving)

    def _retire(self, model: ServedModel) -> None:
        """Stop a model once it is idle, in a task that `_retiring` refers to, since the event loop has only a weak reference."""
        task = asyncio.create_task(model.stop_when_idle())
        self._retiring[task] = model
        task.add_done_callback(self._retired)

    def _retired(self, task: asyncio.Task[None]) -> None:
        del self._retiring[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            traceback.print_exception(error)

    async def _make_room(self) -> None:
        """Unload models until another may be loaded: the least recently used idle one, or after `patience_seconds` a busy one.

        A busy one takes no new requests and finishes its running ones first. Requests for it wait until it can be loaded again.
        Raises ApiError 503 if no further model may be loaded.
        """
        patient_until = time.monotonic() + self.limits.patience_seconds
        try:
            while len(self.loaded) >= self.limits.max_loaded:
                self._require_loads()
                gone = next((m for m in self.loaded.values() if m.idle or not m.backend.is_alive), None)
                if gone is not None:
                    await self._unload(gone.name).stop()
                    continue
                if time.monotonic() > patient_until:
                    next(iter(self.loaded.values())).activity.leaving = True
                await asyncio.sleep(0.05)
        finally:
            for model in self.loaded.values():  # another one was unloaded in its place, or the load was cancelled
                model.activity.leaving = False

    def close(self) -> None:
        """Load no further model, since the server shuts down; the loaded ones answer until `drain`."""
        self.closing = True

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, wait at most `seconds` for the running ones, and stop all backends."""
        self.closing = self.draining = True
        for model in self.serving:
            model.activity.used = -math.inf  # idle at once, since no further request can come
            self._retire(model)
        if not self._retiring:
            return
        tasks = list(self._retiring)
        await asyncio.wait(tasks, timeout=seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
