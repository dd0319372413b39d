// A conversation is a tree of plain objects. The `children` of a turn are the alternative next turns; the one with index `shown` is
// shown. A user's turn has a `text`, and may have `files`: a name each, with a `text`, or an `image` as a data URL. The model's turn
// has one answer, or two side by side. An answer may have tool `calls`; a turn of the role "tool" after it has their `results`. An
// answer's `end` is why it ended: a finish reason of the server such as "stop", "stopped" by the user, "cut" with the connection,
// or "failed" with an `error`. It has no `end` while it is being generated.

const VERSION = 1, LONGEST_TITLE = 80;
const parents = new WeakMap();

export const parent = turn => parents.get(turn);

export const newId = () => crypto.randomUUID?.() ?? String(Math.random()).slice(2);  // randomUUID exists on https and localhost only

export function conversation(settings) {
  return { id: newId(), title: "", changed: Date.now(), settings, children: [], shown: 0 };
}

/** Adds a turn after another, or as the first of a conversation, and shows it. */
export function add(before, turn) {
  parents.set(turn, before);
  before.children.push(Object.assign(turn, { children: [], shown: 0 }));
  before.shown = before.children.length - 1;
  return turn;
}

/** The shown turns, in order. */
export function path(conversation) {
  const turns = [];
  for (let at = conversation; at.children.length;) turns.push(at = at.children[at.shown]);
  return turns;
}

/** The answer of a turn that the user has chosen; the first without a choice. */
export const chosen = turn => turn.answers[turn.winner ?? 0];

/** A turn as text. */
export function spoken(turn) {
  if (turn.role === "user") return turn.text;
  if (turn.role === "tool") return turn.results.map(({ text }) => text).join("\n");
  const { text, calls = [] } = chosen(turn);
  return text || calls.map(({ name, arguments: given }) => `${name}(${given})`).join("\n");
}

/** The messages up to a turn, for the API. Empty ones are left out; neighbours of the same role are joined, since many templates require it. */
export function messages(conversation, turn) {
  const said = [];
  for (let at = turn; at !== conversation; at = parent(at)) said.unshift(...WRITTEN[at.role](at));
  said.unshift({ role: "system", content: conversation.settings.system ?? "" });
  return said.filter(one => one.role === "tool" || one.tool_calls || one.content.length && String(one.content).trim()).reduce((kept, one) => {
    const last = kept.at(-1);
    if (last?.role === one.role && one.role !== "tool" && !last.tool_calls && !one.tool_calls) last.content = joined(last.content, one.content);
    else kept.push(one);
    return kept;
  }, []);
}

/** The messages of a turn by its role, in the form of the API. */
const WRITTEN = {
  user({ text, files = [] }) {
    const whole = [...files.filter(file => !file.image).map(quoted), text].filter(part => part.trim()).join("\n\n");
    const images = files.filter(file => file.image).map(({ image }) => ({ type: "image_url", image_url: { url: image } }));
    return [{ role: "user", content: images.length ? joined(images, whole) : whole }];
  },
  assistant(turn) {
    const { text, calls } = chosen(turn);
    if (!calls?.length) return [{ role: "assistant", content: text }];
    const written = calls.map(({ id, name, arguments: given }) => ({ id, type: "function", function: { name, arguments: given } }));
    return [{ role: "assistant", content: text || null, tool_calls: written }];
  },
  tool: ({ results }) => results.map(({ id, text }) => ({ role: "tool", tool_call_id: id, content: text })),
};

/** A file as text: its name, and its content between fences that are longer than any in the content. */
function quoted({ name, text }) {
  const fence = "`".repeat(Math.max(3, ...[...text.matchAll(/`+/g)].map(([run]) => run.length + 1)));
  return `${name}:\n${fence}\n${text}${text.endsWith("\n") ? "" : "\n"}${fence}`;
}

/** Two contents joined: as text, or as parts if one of them has images. */
function joined(before, after) {
  if (typeof before === "string" && typeof after === "string") return `${before}\n\n${after}`;
  return [before, after].flatMap(one => typeof one !== "string" ? one : one.trim() ? [{ type: "text", text: one }] : []);
}

/** The conversation's title: the one that the user gave it, or the beginning of its first message. */
export function title(conversation) {
  const [begun] = conversation.children, first = begun?.text || begun?.files?.[0].name || "";
  return conversation.title || first.trim().replace(/\s+/g, " ").slice(0, LONGEST_TITLE) || "New chat";
}

/** Every turn of a conversation, with the turn before it. */
function* turns(conversation) {
  const left = [conversation];
  while (left.length) {
    const at = left.pop();
    for (const child of at.children) { yield [child, at]; left.push(child); }
  }
}

/** Whether the title and texts of a conversation contain all `words`, which are in lower case; case is ignored. */
export function holds(conversation, words) {
  const texts = [conversation.title];
  for (const [turn] of turns(conversation)) texts.push(...turn.answers?.map(answer => answer.text) ?? [spoken(turn)], ...(turn.files ?? []).map(file => file.name));
  const whole = texts.join("\n").toLowerCase();
  return words.every(word => whole.includes(word));
}

/** Makes a conversation from the store usable: sets the turns' parents, and marks unfinished answers as cut. */
export function revive(conversation) {
  for (const [turn, before] of turns(conversation)) {
    parents.set(turn, before);
    for (const answer of turn.answers ?? []) answer.end ??= "cut";
  }
  return conversation;
}

export const exported = conversations => JSON.stringify({ tenfold_chats: VERSION, conversations }, null, 1);

/** The conversations of an exported file, with known fields only. Throws an Error of one sentence. */
export function imported(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON: import one that was exported here.");
  }
  if (file?.tenfold_chats !== VERSION || !Array.isArray(file.conversations)) {
    throw new Error("This file has no conversations of this version: import one that was exported here.");
  }
  try {
    return file.conversations.map(read);
  } catch {
    throw new Error("This file is damaged: a conversation in it cannot be read. Nothing was imported.");
  }
}

const string = value => { if (typeof value !== "string") throw new TypeError(); return value; };
const number = value => { if (!Number.isFinite(value)) throw new TypeError(); return value; };
const optional = (check, value) => value === undefined || value === null ? undefined : check(value);

function read(found) {
  const settings = found.settings ?? {};
  const whole = { id: string(found.id), title: string(found.title), changed: number(found.changed), children: [], shown: 0, settings: {
    system: optional(string, settings.system), tools: optional(string, settings.tools), temperature: optional(number, settings.temperature), max_tokens: optional(number, settings.max_tokens) } };
  const left = [[found, whole]];
  while (left.length) {
    const [from, to] = left.pop();
    for (const child of from.children) { const turn = add(to, readTurn(child)); left.push([child, turn]); }
    to.shown = Math.max(0, Math.min(number(from.shown), to.children.length - 1));
  }
  return whole;
}

function readTurn(found) {
  if (found.role === "user") return { role: "user", text: string(found.text), files: optional(files => files.map(readFile), found.files) };
  if (found.role === "tool") return { role: "tool", results: found.results.map(({ id, name, text }) => ({ id: string(id), name: string(name), text: string(text) })) };
  if (found.role !== "assistant" || ![1, 2].includes(found.answers.length)) throw new TypeError();
  const answers = found.answers.map(answer => ({ model: string(answer.model), text: string(answer.text), calls: optional(calls => calls.map(readCall), answer.calls),
    end: optional(string, answer.end) ?? "cut", error: optional(string, answer.error) }));
  return { role: "assistant", answers, winner: found.winner === 0 || found.winner === 1 ? found.winner % answers.length : undefined };
}

function readFile({ name, text, image }) {
  if (image === undefined) return { name: string(name), text: string(text) };
  if (!/^data:image\/(png|jpeg);base64,[A-Za-z0-9+/=]+$/.test(string(image))) throw new TypeError();
  return { name: string(name), image };
}

const readCall = ({ id, name, arguments: given }) => ({ id: string(id), name: string(name), arguments: string(given) });
