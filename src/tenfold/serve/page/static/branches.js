// Shows a conversation as a tree: where a message was edited, or an answer repeated, the branches are listed below each other.
import { button, make } from "./dom.js";
import { path, spoken } from "./conversation.js";

const LONGEST_LINE = 60;  // characters of a turn

/** The panel with the tree; `open` is called with the turn whose branch is to be shown. */
export class Branches {
  constructor(conversation, open) {
    Object.assign(this, { conversation, open });
    this.box = make("fieldset", { className: "branches", hidden: true, ariaLabel: "Branches" });
  }

  draw() {
    if (this.box.hidden) return;
    const conversation = this.conversation(), shown = new Set(path(conversation));
    const rows = conversation.children.map(first => this.#branch(first, shown));
    this.box.replaceChildren(...rows.length ? rows : [make("p", { textContent: "Nothing was said yet." })]);
  }

  /** A list of a turn and those after it up to the next fork, with the fork's branches as lists in it. */
  #branch(first, shown) {
    const list = make("ul");
    for (let turn = first, next; turn; turn = next) {
      next = turn.children.length === 1 ? turn.children[0] : null;
      const row = make("li", {}, this.#entry(turn, shown.has(turn)));
      if (turn.children.length > 1) row.append(...turn.children.map(child => this.#branch(child, shown)));
      list.append(row);
    }
    return list;
  }

  #entry(turn, isShown) {
    const entry = button(line(turn), () => this.open(turn), { dir: "auto" });
    if (isShown) entry.setAttribute("aria-current", "true");
    return entry;
  }
}

function line(turn) {
  const who = { user: "You", tool: "Result", assistant: turn.answers?.[turn.winner ?? 0].model }[turn.role];
  const said = spoken(turn).trim().replace(/\s+/g, " ");
  return `${who}: ${said.length > LONGEST_LINE ? `${said.slice(0, LONGEST_LINE)}…` : said || "…"}`;
}
