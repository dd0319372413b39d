"""`/tokenize` and `/detokenize`, as in vLLM: text to a model's tokens and back."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from tenfold.serve.api.answer_types import Detokenized, Tokenized
from tenfold.serve.api.dependencies import Placed, ServedModels, gives
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.prompts import Pictures, chat_prompt, plain
from tenfold.serve.api.protocol import DetokenizeRequest, TokenizeRequest
from tenfold.serve.api.served_model import ServedModel

router = APIRouter()


@router.post("/tokenize", **gives(Tokenized))
async def tokenize(body: TokenizeRequest, place: Placed, models: ServedModels) -> Response:
    model = await models.admit(body.model, place, 1)
    tokens = await _tokens(model, body)
    answer = {"tokens": tokens, "count": len(tokens), "max_model_len": model.backend.max_model_len, "token_strs": None}
    if body.return_token_strs:
        answer["token_strs"] = await model.prompt(lambda: [model.text.tokenizer.id_to_token(token) for token in tokens])
    return JSONResponse(answer)


async def _tokens(model: ServedModel, body: TokenizeRequest) -> list[int]:
    """The tokens of a text or a conversation, which may be longer than the context. Raises ApiError or TenfoldError."""
    if (messages := body.messages) is None:
        ids = await model.prompt(lambda: model.text.counted_ids(body.prompt or ""))
        return ids if body.add_special_tokens is False else model.text.begun(ids)
    if body.add_special_tokens:
        raise ApiError(400, "A chat template writes the special tokens: leave add_special_tokens out.", param="add_special_tokens")
    pictures = Pictures(model)
    read = await model.prompt(lambda: [plain(message, pictures.mark) for message in messages])
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    return (await chat_prompt(model, read, tools, pictures, body, counts=True)).tokens


@router.post("/detokenize", **gives(Detokenized))
async def detokenize(body: DetokenizeRequest, place: Placed, models: ServedModels) -> Response:
    model = await models.admit(body.model, place, 1)
    return JSONResponse({"prompt": await model.prompt(lambda: model.text.decode(body.tokens))})
