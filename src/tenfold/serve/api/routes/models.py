"""`/v1/models`: list, swap and split (A/B test) models; and vLLM's `/sleep`, `/wake_up` and `/is_sleeping`."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response
from openai.types import Model

from tenfold.model.path import model_path
from tenfold.serve.api.answer_types import ModelList, Sleeping, SplitModel, Swapped
from tenfold.serve.api.dependencies import ServedModels, gives, operator_only
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.models import Models
from tenfold.serve.api.protocol import SplitRequest, SwapRequest

router = APIRouter()


def _described(models: Models, name: str) -> dict[str, Any]:
    """OpenAI's model object.

    An adapter also has its model as `parent`, as in vLLM; a loaded model has `capabilities.vision`, as in Mistral's API.
    """
    parent = models.parents[name]
    described: dict[str, Any] = {"id": name, "object": "model", "created": models.created, "owned_by": "tenfold"}
    if (loaded := models.loaded.get(parent or name)) is not None:
        described["capabilities"] = {"vision": loaded.sight is not None}
    return described if parent is None else {**described, "parent": parent}


@router.get("/v1/models", **gives(ModelList))
async def list_models(models: ServedModels) -> Response:
    return JSONResponse({"object": "list", "data": [_described(models, name) for name in models.parents]})


@router.get("/v1/models/{name:path}", **gives(Model))
async def get_model(name: str, models: ServedModels) -> Response:
    return JSONResponse(_described(models, models.resolve(name)))


@router.post("/v1/models/swap", dependencies=[Depends(operator_only)], **gives(Swapped))
async def swap(body: SwapRequest, models: ServedModels) -> Response:
    swapped = await models.swap(body.model, _path(body))
    return JSONResponse({**_described(models, swapped.name), "path": body.path})


@router.post("/v1/models/split", dependencies=[Depends(operator_only)], **gives(SplitModel))
async def split(body: SplitRequest, models: ServedModels) -> Response:
    """Start an A/B test. A swap ends it: to the candidate's path, which promotes the candidate, or to the old model's path."""
    name = models.resolve(body.model)
    made = await models.split(name, _path(body), body.share)
    return JSONResponse({**_described(models, name), "candidate": made.candidate.name, "share": made.share})


@router.post("/sleep", dependencies=[Depends(operator_only)], **gives(Sleeping))
async def sleep(models: ServedModels) -> Response:
    """Put the models to sleep; answered once all accepted requests are answered and the caches' memory is free."""
    await models.sleep()
    return await is_sleeping(models)


@router.post("/wake_up", dependencies=[Depends(operator_only)], **gives(Sleeping))
async def wake_up(models: ServedModels) -> Response:
    await models.wake_up()
    return await is_sleeping(models)


@router.get("/is_sleeping", **gives(Sleeping))
async def is_sleeping(models: ServedModels) -> Response:
    return JSONResponse({"is_sleeping": models.asleep})


def _path(body: SwapRequest | SplitRequest) -> Path:
    """The model path in a request. Raises ApiError or TenfoldError if it is not a possible path, or has no model."""
    try:
        return model_path(Path(body.path))
    except (OSError, ValueError):  # the name is too long, or contains a zero byte
        raise ApiError(400, "The path is not one that a file can have: give another.", param="path") from None
