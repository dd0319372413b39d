// The chat, for any element of any page of this server: `mount(element)`. The page must load chat.css, and the element needs a height.
import { button, make, question } from "./dom.js";
import { Client } from "./client.js";
import { Attached } from "./attach.js";
import { Branches } from "./branches.js";
import { List } from "./list.js";
import { Settings, lastSettings } from "./settings.js";
import { Store } from "./store.js";
import { add, conversation, newId, parent, path, revive, title } from "./conversation.js";
import { answer, goOn } from "./answering.js";
import { article, grow } from "./turn.js";
import { layout } from "./layout.js";

const NEAR_END_PX = 120;

/** Puts the chat into `host`; `server` is the URL before /v1, by default the page's own server. */
export function mount(host, { server = "" } = {}) {
  new Chat(host, server).start();
}

class Chat {
  constructor(host, server) {
    this.host = host;
    this.client = new Client(server, () => question(host, "This server needs a key.", "Send", "Key"));
    this.store = new Store(id => this.changedElsewhere(id));
    this.user = localStorage.tenfoldUser ??= newId();
    Object.assign(this, { models: [], running: null, conversation: conversation(lastSettings()), articles: new WeakMap(), growing: new Map() });
    this.settings = new Settings(() => this.conversation, () => { if (this.conversation.children.length) this.save(); });
    this.files = new Attached(text => this.say(text));
    this.branches = new Branches(() => this.conversation, turn => this.reveal(turn));
    this.list = new List(this);
    this.parts = layout(this);
    document.addEventListener("keydown", event => {
      if (event.key !== "Escape" || !host.checkVisibility()) return;
      this.stop();
      this.listed(false);
    });
  }

  async start() {
    this.parts.log.replaceChildren();
    try {
      const { data } = await this.client.json("/v1/models");
      this.models = data.map(model => model.id);
      this.blind = new Set(data.filter(model => model.capabilities?.vision === false).map(model => model.id));
    } catch (error) {
      this.parts.log.append(make("p", { className: "error", role: "alert", textContent: error.message }), button("Try again", () => this.start()));
      return;
    }
    const { model, consent, consentLabel } = this.parts;
    model.replaceChildren(...this.models.map(name => make("option", { value: name, textContent: name })));
    this.chooseModel();
    await this.tried(async () => {
      const { feedback } = await this.client.json("/health");
      consentLabel.hidden = this.list.forget.hidden = !feedback;
      consent.checked = feedback && localStorage.tenfoldConsent === "yes";
    });
    await this.open(sessionStorage.tenfoldOpen || null);
    this.parts.send.disabled = false;
  }

  /** Opens the conversation with an id; a new one for null, or if there is none of this id. */
  async open(id) {
    this.stop();
    const kept = id && await this.tried(() => this.store.get(id));
    this.conversation = kept ? revive(kept) : conversation(lastSettings());
    sessionStorage.tenfoldOpen = kept ? id : "";
    this.settings.show(this.conversation.settings);
    this.parts.panel.replaceChildren();
    this.listed(false);
    this.draw();
    this.parts.log.scrollTop = this.parts.log.scrollHeight;
    await this.list.draw();
    this.focus();
  }

  async changedElsewhere(id) {
    if (id === this.conversation.id && !this.running) await this.open(id);
    else await this.list.draw();
  }

  async keep(conversation) {
    if (!conversation.isDeleted) await this.tried(() => this.store.put(conversation));
  }

  async save(changed = this.conversation) {
    changed.changed = Date.now();
    if (changed === this.conversation) sessionStorage.tenfoldOpen = changed.id;
    await this.keep(changed);
    await this.list.draw();
    this.parts.heading.textContent = title(this.conversation);
  }

  // Actions of turns and the form.

  get last() { return path(this.conversation).at(-1) ?? this.conversation; }
  get isReady() { return !this.running && !this.files.reading && !this.parts.send.disabled; }

  send(before, text, files = []) {
    answer(this, add(before, { role: "user", text, ...files.length ? { files } : {} }));
    return true;
  }

  /** Sends the results of an answer's tool calls. */
  sendResults(turn, results) { answer(this, add(turn, { role: "tool", results })); }

  /** Sets whether images may be added: not for models that are known to read none; the server knows it of loaded models only. */
  chooseModel() { this.files.sees = !this.blind.has(this.parts.model.value); }

  retry(turn) { answer(this, parent(turn)); }
  goOn(turn) { goOn(this, turn); }
  stop() { this.running?.stopper.abort(); }

  /** Shows another version of a turn. */
  show(turn, at) {
    parent(turn).shown = at;
    for (const sibling of parent(turn).children) this.articles.delete(sibling);
    this.draw();
    this.save();
  }

  /** Shows the branch that a turn is in. */
  reveal(turn) {
    for (let at = turn; parent(at); at = parent(at)) parent(at).shown = parent(at).children.indexOf(at);
    this.articles = new WeakMap();
    this.draw();
    this.articles.get(turn).scrollIntoView({ block: "nearest" });
    this.save();
  }

  /** The names of the models to ask, and whether the answers are to be stored. */
  wishes() {
    const { model, beside, consent } = this.parts, other = this.models.find(name => name !== model.value) ?? model.value;
    return { names: beside.checked ? [model.value, other] : [model.value], stores: consent.checked };
  }

  /** Sends the user's feedback on an answer; if the server has kept it, `take` changes the turn. */
  async judge(turn, what, take) {
    try {
      await this.client.ask("/v1/feedback", "POST", { consent: true, user: this.user, response_id: turn.answers[0].id, ...what });
      take();
      turn.note = "kept";
      this.parts.status.textContent = "Thank you, that was kept.";
    } catch (error) {
      this.parts.status.textContent = turn.note = error.message;
    }
    this.redraw(turn);
    this.save();
  }

  // While an answer is generated.

  begin(turn, stopper) {
    this.running = { turn, stopper };
    this.redraw(turn);
    this.parts.status.textContent = "Answering";
    this.save();
  }

  grow(turn) {
    this.keepPlace(() => { for (const one of turn.answers) if (this.growing.has(one)) grow(one, this.growing); });
    this.speeds(turn);
  }

  end(ended, turn) {
    for (const [one, { text }] of this.growing) text.end(one.text);
    this.running = null;
    if (ended === this.conversation) {
      this.redraw(turn);
      this.speeds(turn);
      const failed = turn.answers.map(one => one.error).filter(Boolean).join(" ");
      this.parts.status.textContent = failed || (turn.answers.some(one => one.end === "stopped") ? "Stopped" : "Answer finished");
      this.focus();
    }
    this.growing.clear();
    this.save(ended);
  }

  speeds({ answers }) {
    const words = ({ first_ms, tokens, seconds }) => `first token ${first_ms.toFixed(0)} ms · ${tokens} tokens · ${(tokens / Math.max(seconds, .001)).toFixed(1)} tokens/s`;
    this.parts.panel.replaceChildren(...answers.flatMap((one, i) =>
      one.speed ? [make("span", { textContent: `${answers.length > 1 ? `answer ${i + 1}` : one.model}: ${words(one.speed)}` })] : []));
  }

  // Drawing.

  redraw(turn) {
    this.articles.delete(turn);
    this.draw();
  }

  /** Updates the articles; those of unchanged turns stay. */
  draw() {
    const { log, heading, send, stop } = this.parts, shown = path(this.conversation).map(turn => this.articleOf(turn));
    this.keepPlace(() => {
      const same = shown.findIndex((one, i) => one !== log.children[i]), from = same < 0 ? shown.length : same;
      while (log.children.length > from) log.lastElementChild.remove();
      log.append(...shown.slice(from));
    });
    heading.textContent = title(this.conversation);
    send.hidden = Boolean(this.running);
    stop.hidden = !this.running;
    this.branches.draw();
    for (const tools of [...log.querySelectorAll("fieldset"), this.branches.box]) tools.disabled = Boolean(this.running);
  }

  articleOf(turn) {
    if (!this.articles.has(turn)) this.articles.set(turn, article(this, turn, this.growing));
    return this.articles.get(turn);
  }

  /** Makes a change, and keeps the log scrolled to its end if it was there, and the keyboard's focus on the same button. */
  keepPlace(change) {
    const { log } = this.parts, near = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END_PX;
    const name = element => element.ariaLabel ?? element.textContent, on = document.activeElement;
    const at = [...log.children].indexOf(on.closest("article"));
    change();
    if (at >= 0 && !on.isConnected) {
      const buttons = [...log.children[at]?.querySelectorAll("button") ?? []];
      (buttons.find(one => name(one) === name(on)) ?? buttons.at(-1))?.focus();
    }
    if (near) log.scrollTop = log.scrollHeight;
  }

  /** Shows or hides the list of conversations on narrow screens. */
  listed(on) {
    this.host.classList.toggle("listed", on);
    this.parts.menu.ariaExpanded = on;
    if (on) this.list.search.focus();
  }

  /** Focuses the message box, unless the focus is elsewhere, or a touch screen's keyboard would cover the page. */
  focus() {
    const { message, box } = this.parts, on = document.activeElement;
    if ((on === document.body || box.contains(on)) && !matchMedia("(pointer: coarse)").matches) message.focus();
  }

  say(text) {
    this.parts.status.textContent = this.parts.panel.textContent = text;
  }

  /** The result of `work`; if it fails, the user is told, and the result is undefined. */
  async tried(work) {
    try {
      return await work();
    } catch (error) {
      this.say(error.message);
      return undefined;
    }
  }
}
