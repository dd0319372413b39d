"""`tenfold chat`: a conversation in the terminal, with the engine in this process."""

from tenfold.serve.engine.build import make_engine
from tenfold.serve.options import EngineOptions
from tenfold.serve.request import Request, Sampling
from tenfold.serve.text import TextStream, read_text_side


def converse(options: EngineOptions, temperature: float, top_p: float, max_tokens: int, system: str) -> None:
    """Read questions and print answers until an empty line or the end of the input; Ctrl-C stops an answer."""
    text, engine = read_text_side(options.path), make_engine(options)
    messages = [{"role": "system", "content": system}] if system else []
    while True:
        try:
            said = input("> ")
        except (EOFError, KeyboardInterrupt):
            return
        if not said.strip():
            return
        messages.append({"role": "user", "content": said})
        sampling = Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens, stop_tokens=text.stop_tokens)
        engine.add(Request("answer", text.encode_chat(messages), sampling))
        stream, answer = TextStream(text.tokenizer, []), ""
        try:
            while engine.has_work:
                for output in engine.step():
                    piece = output.error or stream.push(output.tokens)[0] + (stream.rest() if output.finish_reason else "")
                    answer += piece
                    print(piece, end="", flush=True)
        except KeyboardInterrupt as stop:
            if stop.args:  # raised for another signal than SIGINT
                raise
            engine.cancel("answer")
        print()
        messages.append({"role": "assistant", "content": answer})
