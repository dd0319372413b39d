"""`/tokenize` and `/detokenize`: text to a model's tokens and back."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from tenfold.serve.api.answer_types import Detokenized, Tokenized
from tenfold.serve.api.dependencies import Placed, ServedModels, gives
from tenfold.serve.api.prompts import Pictures, chat_prompt, plain
from tenfold.serve.api.protocol import DetokenizeRequest, TokenizeRequest

router = APIRouter()


@router.post("/tokenize", **gives(Tokenized))
async def tokenize(body: TokenizeRequest, place: Placed, models: ServedModels) -> Response:
    model = await models.admit(body.model, place, 1)
    if (messages := body.messages) is not None:
        pictures = Pictures(model)
        read = await model.prompt(lambda: [plain(m, pictures.mark) for m in messages])
        tokens = (await chat_prompt(model, read, [], pictures)).tokens
    else:
        tokens = await model.prompt(lambda: model.text.encode(body.prompt or ""))
    return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": model.backend.max_model_len})


@router.post("/detokenize", **gives(Detokenized))
async def detokenize(body: DetokenizeRequest, place: Placed, models: ServedModels) -> Response:
    model = await models.admit(body.model, place, 1)
    return JSONResponse({"prompt": await model.prompt(lambda: model.text.decode(body.tokens))})
