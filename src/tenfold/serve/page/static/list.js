// The list of the conversations in this browser: search, rename, delete, export, import.
import { button, download, editor, make, question } from "./dom.js";
import { exported, imported, newId, title } from "./conversation.js";

export class List {
  constructor(chat) {
    this.chat = chat;
    this.search = make("input", { type: "search", placeholder: "Search", ariaLabel: "Search conversations", oninput: () => this.draw() });
    this.rows = make("ul", { className: "rows", ariaLabel: "Conversations" });
    const file = make("input", { type: "file", accept: ".json,application/json", hidden: true, ariaLabel: "File to import", onchange: () => this.import(file) });
    this.forget = button("Delete my data", () => this.forgetMe(), { hidden: true, className: "forget" });
    this.box = make("nav", { className: "list", ariaLabel: "Conversations" },
      button("New chat", () => chat.open(null), { className: "new" }), this.search, this.rows,
      make("div", { className: "tools" }, button("Export all", () => this.export()), button("Import", () => file.click()), this.forget), file);
  }

  /** Draw the list of stored conversations; with a search, of those that contain all of its words. */
  async draw() {
    if (this.rows.querySelector("input")) return;  // a conversation is being renamed
    const { chat } = this, words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean), number = this.drawn = (this.drawn ?? 0) + 1;
    await chat.tried(async () => {
      const [heads, found] = await Promise.all([chat.store.list(), words.length ? chat.store.search(words) : null]);
      if (number !== this.drawn) return;  // a later call has drawn already
      const shown = heads.filter(head => found?.has(head.id) ?? true);
      this.rows.replaceChildren(...shown.map(head => this.row(head)));
      if (!shown.length) this.rows.append(make("li", { className: "none", textContent: words.length ? "Nothing is found." : "No conversation yet." }));
    });
  }

  row(head) {
    const isOpen = head.id === this.chat.conversation.id;
    const name = button(head.title, () => isOpen ? this.chat.listed(false) : this.chat.open(head.id), { dir: "auto", className: "name", title: new Date(head.changed).toLocaleString() });
    const row = make("li", {}, name);
    if (isOpen) {
      name.setAttribute("aria-current", "true");
      row.append(make("div", { className: "tools" }, button("Rename", () => this.rename(row, head)), button("Export", () => this.export(head.id)),
        button("Delete", () => this.delete(head))));
    }
    return row;
  }

  rename(row, head) {
    const box = make("input", { value: head.title, dir: "auto", ariaLabel: "Name of the conversation", maxLength: 80 });
    const leave = () => { row.replaceChildren(); this.draw(); };
    const keep = name => {
      this.chat.conversation.title = name.trim();
      row.replaceChildren();
      this.chat.save();
    };
    row.replaceChildren(...editor(box, "Keep", keep, leave));
  }

  async delete({ id, title }) {
    if (await question(this.chat.host, `Delete “${title}” from this browser?`, "Delete") === null) return;
    this.chat.conversation.isDeleted = true;  // so that an unfinished answer does not store it again
    await this.chat.open(null);
    await this.chat.tried(() => this.chat.store.remove(id));
    this.draw();
  }

  async export(id) {
    await this.chat.tried(async () => {
      const chosen = id ? [await this.chat.store.get(id)] : await this.chat.store.all();
      const name = id ? title(chosen[0]).replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) : "conversations";
      download(`${name}.json`, exported(chosen));
    });
  }

  /** Adds the conversations of a file. Those that are stored already and unchanged are skipped; changed ones are added under a new id. */
  async import(file) {
    const { chat } = this, [chosen] = file.files;
    file.value = "";
    await chat.tried(async () => {
      const here = new Map((await chat.store.list()).map(head => [head.id, head.changed]));
      const read = imported(await chosen.text()), fresh = read.filter(one => here.get(one.id) !== one.changed);
      for (const one of fresh) if (here.has(one.id)) one.id = newId();
      await chat.store.put(...fresh);
      chat.say(`${fresh.length} of ${read.length} conversations were imported${fresh.length < read.length ? "; the others are here already" : ""}.`);
    });
    this.draw();
  }

  async forgetMe() {
    const { chat } = this;
    if (await question(chat.host, "Delete all that you gave to this server: stored answers, ratings and corrections?", "Delete") === null) return;
    await chat.tried(async () => {
      await chat.client.ask(`/v1/feedback?user=${encodeURIComponent(chat.user)}`, "DELETE");
      chat.say("Your data was deleted.");
    });
  }
}
