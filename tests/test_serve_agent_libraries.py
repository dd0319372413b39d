"""Agent libraries that others wrote run their loops against a scripted model: calls beside each other, what they gave, the answer."""

import asyncio
import json
from importlib.util import find_spec

import anthropic
import openai
import pytest
from scripted import Scripted, scripted_site

from tenfold.data.text.tokenizer import train_tokenizer

pytestmark = pytest.mark.slow
WEATHER = {"Rome": "sunny", "Lima": "rain"}
CALLS = "".join(f"<tool_call>\n{json.dumps({'name': 'weather', 'arguments': {'city': city}})}\n</tool_call>\n" for city in WEATHER)
END = "Rome has sun, Lima has rain."


@pytest.fixture(scope="module")
def site():
    backend = Scripted(train_tokenizer(["What is the weather in Rome and Lima? It is sunny, there is rain. " * 20], 400))
    with scripted_site(backend) as url:
        yield backend, url


@pytest.fixture
def turns(site):
    """The server's URL, with a model that calls twice at once and then answers; afterwards both prompts are looked at."""
    backend, url = site
    backend.answers, backend.asked = [(f"I look.\n{CALLS}", "stop"), (END, "stop")], []
    yield url
    first, second = backend.asked
    assert "weather" in first and not any(told in first for told in WEATHER.values())
    assert second.index('"Rome"') < second.index('"Lima"') < second.index("sunny") < second.index("rain")


def weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: Its name.
    """
    return WEATHER[city]


@pytest.mark.skipif(find_spec("agents") is None, reason="openai-agents is not installed")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["chat", "responses"])
def test_openai_agents(turns, kind, stream):
    import agents

    client = openai.AsyncOpenAI(base_url=f"{turns}/v1", api_key="none")
    make = agents.OpenAIChatCompletionsModel if kind == "chat" else agents.OpenAIResponsesModel
    agents.set_tracing_disabled(True)
    agent = agents.Agent("a", tools=[agents.function_tool(weather)], model=make(model="tiny", openai_client=client))

    async def run():
        if not stream:
            return await agents.Runner.run(agent, "Weather?")
        running = agents.Runner.run_streamed(agent, "Weather?")
        async for _ in running.stream_events():
            pass
        return running

    assert asyncio.run(run()).final_output == END


@pytest.mark.skipif(find_spec("pydantic_ai") is None, reason="pydantic-ai-slim is not installed")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["chat", "responses", "messages"])
def test_pydantic_ai(turns, kind, stream):
    from pydantic_ai import Agent
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.anthropic import AnthropicProvider
    from pydantic_ai.providers.openai import OpenAIProvider

    if kind == "messages":
        client = anthropic.AsyncAnthropic(base_url=turns, api_key="none")
        model = AnthropicModel("tiny", provider=AnthropicProvider(anthropic_client=client))
    else:
        make = OpenAIChatModel if kind == "chat" else OpenAIResponsesModel
        model = make("tiny", provider=OpenAIProvider(base_url=f"{turns}/v1", api_key="none"))
    agent = Agent(model, tools=[weather])

    async def read(_, events):
        async for _ in events:
            pass

    result = agent.run_sync("Weather?", event_stream_handler=read if stream else None)
    assert result.output == END


@pytest.mark.skipif(find_spec("smolagents") is None, reason="smolagents is not installed")
@pytest.mark.parametrize("stream", [False, True])
def test_smolagents(site, stream):
    """It ends with a call of its own, and writes calls of earlier turns into the prompt as text."""
    from smolagents import OpenAIModel, ToolCallingAgent, tool

    backend, url = site
    last = json.dumps({"name": "final_answer", "arguments": {"answer": END}})
    backend.answers, backend.asked = [(f"I look.\n{CALLS}", "stop"), (last, "stop")], []
    model = OpenAIModel("tiny", api_base=f"{url}/v1", api_key="none")
    agent = ToolCallingAgent([tool(weather)], model, stream_outputs=stream, verbosity_level=0)
    assert agent.run("Weather?") == END
    assert all(told in backend.asked[1] and told not in backend.asked[0] for told in WEATHER.values())
