"""`/tokenize` and `/detokenize`: text to a model's tokens and back."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from tenfold.serve.api.dependencies import ServedModels, gives
from tenfold.serve.api.protocol import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest
from tenfold.serve.api.routes.chat import plain

router = APIRouter()


@router.post("/tokenize", **gives(Tokenized))
async def tokenize(body: TokenizeRequest, models: ServedModels) -> Response:
    model = await models.get(body.model)
    if body.messages is not None:
        tokens = await model.chat_prompt([plain(m) for m in body.messages])
    else:
        tokens = await model.prompt(lambda: model.text.encode(body.prompt or ""))
    return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": model.backend.max_model_len})


@router.post("/detokenize", **gives(Detokenized))
async def detokenize(body: DetokenizeRequest, models: ServedModels) -> Response:
    model = await models.get(body.model)
    return JSONResponse({"prompt": model.text.tokenizer.decode(body.tokens, skip_special_tokens=False)})
