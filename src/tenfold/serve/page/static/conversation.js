// A conversation is a tree of plain objects: each turn has its alternatives, one of which is shown. A user's turn has a `text`, the
// model's has one answer, or two side by side. An answer's `end` is why it ended: "stop" and other finish reasons of the server,
// "stopped" by the user, "cut" with its connection, "failed" with an `error`; none while it is under way.

const VERSION = 1, LONGEST_TITLE = 80;
const parents = new WeakMap();

export const parent = turn => parents.get(turn);

export const newId = () => crypto.randomUUID?.() ?? String(Math.random()).slice(2);  // randomUUID is there on https and localhost alone

export function conversation(settings) {
  return { id: newId(), title: "", changed: Date.now(), settings, children: [], shown: 0 };
}

/** Adds a turn behind another, or as the first of a conversation, and shows it. */
export function add(before, turn) {
  parents.set(turn, before);
  before.children.push(Object.assign(turn, { children: [], shown: 0 }));
  before.shown = before.children.length - 1;
  return turn;
}

/** The turns that are shown, in their order. */
export function path(conversation) {
  const turns = [];
  for (let at = conversation; at.children.length;) turns.push(at = at.children[at.shown]);
  return turns;
}

export const chosen = turn => turn.answers[turn.winner ?? 0];
export const spoken = turn => turn.role === "user" ? turn.text : chosen(turn).text;

/** The messages up to a turn. What is empty is left out, and what then stands beside its like becomes one, as templates want it. */
export function messages(conversation, turn) {
  const said = [];
  for (let at = turn; at !== conversation; at = parent(at)) said.unshift({ role: at.role, content: spoken(at) });
  said.unshift({ role: "system", content: conversation.settings.system ?? "" });
  return said.filter(message => message.content.trim()).reduce((kept, message) => {
    const last = kept.at(-1);
    if (last?.role === message.role) last.content += `\n\n${message.content}`;
    else kept.push(message);
    return kept;
  }, []);
}

/** What it is called: the name that it was given, or how its first message begins. */
export function title(conversation) {
  const first = conversation.children[0]?.text ?? "";
  return conversation.title || first.trim().replace(/\s+/g, " ").slice(0, LONGEST_TITLE) || "New chat";
}

/** Every turn of a conversation with the one before it. */
function* turns(conversation) {
  const left = [conversation];
  while (left.length) {
    const at = left.pop();
    for (const child of at.children) { yield [child, at]; left.push(child); }
  }
}

/** Whether all of `words` are in its title or its texts, whatever their case. */
export function holds(conversation, words) {
  const texts = [conversation.title];
  for (const [turn] of turns(conversation)) texts.push(...turn.role === "user" ? [turn.text] : turn.answers.map(answer => answer.text));
  const whole = texts.join("\n").toLowerCase();
  return words.every(word => whole.includes(word));
}

/** Makes a conversation that was kept ready to go on: what was under way when it was kept was cut. */
export function revive(conversation) {
  for (const [turn, before] of turns(conversation)) {
    parents.set(turn, before);
    for (const answer of turn.answers ?? []) answer.end ??= "cut";
  }
  return conversation;
}

export const exported = conversations => JSON.stringify({ tenfold_chats: VERSION, conversations }, null, 1);

/** The conversations of an exported file, with nothing in them that is not known. Throws an Error of one sentence. */
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
    system: optional(string, settings.system), temperature: optional(number, settings.temperature), max_tokens: optional(number, settings.max_tokens) } };
  const left = [[found, whole]];
  while (left.length) {
    const [from, to] = left.pop();
    for (const child of from.children) { const turn = add(to, readTurn(child)); left.push([child, turn]); }
    to.shown = Math.max(0, Math.min(number(from.shown), to.children.length - 1));
  }
  return whole;
}

function readTurn(found) {
  if (found.role === "user") return { role: "user", text: string(found.text) };
  if (found.role !== "assistant" || ![1, 2].includes(found.answers.length)) throw new TypeError();
  const answers = found.answers.map(answer => ({ model: string(answer.model), text: string(answer.text), end: optional(string, answer.end) ?? "cut", error: optional(string, answer.error) }));
  return { role: "assistant", answers, winner: found.winner === 0 || found.winner === 1 ? found.winner % answers.length : undefined };
}
