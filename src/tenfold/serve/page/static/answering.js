// Requests an answer from the server, and draws it while it is generated.
import { add, chosen, messages } from "./conversation.js";
import { Cut } from "./client.js";
import { readTools } from "./calls.js";

const BETWEEN_DRAWS_MS = 100, SHARE = 20;  // drawing takes at most about 1 / SHARE of the time, however long an answer is
const BETWEEN_SAVES_MS = 2000;

/** Answers a turn of the user or of tools with the selected model, or with two models. */
export async function answer(chat, asked) {
  const { names, stores } = chat.wishes();
  const turn = add(asked, { role: "assistant", swapped: names.length > 1 && Math.random() < .5, answers: names.map(model => ({ model, text: "" })) });
  await run(chat, turn, messages(chat.conversation, asked), { store: stores });
}

/** Continues an answer that ended too early. */
export async function goOn(chat, turn) {
  const cut = chosen(turn);
  delete cut.end;
  delete cut.error;
  delete cut.stored;
  await run(chat, turn, messages(chat.conversation, turn), { continue_final_message: true });
}

async function run(chat, turn, said, more) {
  const { conversation, client } = chat, stopper = new AbortController();
  const { temperature, max_tokens, tools } = conversation.settings;
  const body = { messages: said, stream: true, stream_options: { include_usage: true }, temperature, max_tokens, top_p: .95, tools: readTools(tools), user: chat.user, ...more };
  const drawing = paced(() => chat.grow(turn), () => chat.keep(conversation));
  chat.begin(turn, stopper);
  await Promise.all(turn.answers.filter(one => !one.end).map(one => read(client, one, body, stopper.signal, drawing.soon)));
  drawing.stop();
  chat.end(conversation, turn);
}

async function read(client, answer, body, signal, drawn) {
  const began = performance.now();
  let first = 0, tokens = 0, finish;
  const take = event => {
    answer.id = event.id;
    const [choice] = event.choices ?? [], text = choice?.delta?.content;
    for (const part of choice?.delta?.tool_calls ?? []) takeCall(answer, part);
    finish = choice?.finish_reason ?? finish;
    if (text) { first ||= performance.now(); answer.text += text; tokens++; }
    if (event.usage) tokens = event.usage.completion_tokens;
    if (first) answer.speed = { first_ms: first - began, tokens, seconds: (performance.now() - first) / 1000 };
    drawn();
  };
  try {
    await client.stream("/v1/chat/completions", { ...body, model: answer.model }, signal, take);
    answer.end = finish ?? "stop";
    answer.stored = Boolean(body.store);  // the server stores only finished answers
  } catch (error) {
    answer.end = error.name === "AbortError" ? "stopped" : error instanceof Cut ? "cut" : "failed";
    if (answer.end === "failed") answer.error = error.message;
  }
}

/** Adds a piece of a tool call: its beginning, or more of its arguments. */
function takeCall(answer, { index, id = "", function: { name = "", arguments: more = "" } }) {
  const call = (answer.calls ??= [])[index] ??= { id, name, arguments: "" };
  call.arguments += more;
}

/** Schedules drawing for the browser's frames, so rarely that it takes a small share of the time; and saves from time to time. */
function paced(draw, save) {
  let timer = 0, frame = 0, cost = 0, saved = performance.now();
  const drawNow = () => {
    const began = performance.now();
    timer = frame = 0;
    draw();
    cost = performance.now() - began;
    if (began - saved > BETWEEN_SAVES_MS) { saved = began; save(); }
  };
  return {
    soon() { timer ||= setTimeout(() => { frame = requestAnimationFrame(drawNow); }, Math.max(BETWEEN_DRAWS_MS, SHARE * cost)); },
    stop() { clearTimeout(timer); cancelAnimationFrame(frame); },
  };
}
