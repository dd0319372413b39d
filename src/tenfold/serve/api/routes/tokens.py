"""`/tokenize` and `/detokenize`: text to a model's tokens and back."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from tenfold.serve.api.answer_types import Detokenized, Tokenized
from tenfold.serve.api.dependencies import Placed, ServedModels, gives
from tenfold.serve.api.protocol import DetokenizeRequest, TokenizeRequest
from tenfold.serve.api.routes.chat import plain, prompt_tokens

router = APIRouter()


@router.post("/tokenize", **gives(Tokenized))
async def tokenize(body: TokenizeRequest, place: Placed, models: ServedModels) -> Response:
    model = await models.admit(body.model, place, 1)
    if (messages := body.messages) is not None:
        tokens = await prompt_tokens(model, await model.prompt(lambda: [plain(m) for m in messages]), [])
    else:
        tokens = await model.prompt(lambda: model.text.encode(body.prompt or ""))
    return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": model.backend.max_model_len})


@router.post("/detokenize", **gives(Detokenized))
async def detokenize(body: DetokenizeRequest, place: Placed, models: ServedModels) -> Response:
    model = await models.admit(body.model, place, 1)
    return JSONResponse({"prompt": await model.prompt(lambda: model.text.decode(body.tokens))})
