// Turns Markdown into DOM nodes: parsed by markdown-it, which passes no HTML through, and then sanitised. While a text is being
// generated, blocks that cannot change any more are drawn once, with highlighted code and formulas; only the last block, or the last
// item of a list, is drawn again.
import { DOMPurify, MarkdownIt, hljs, katex, tasklist, tex } from "./libraries.js";
import { button, make } from "./dom.js";

const LONGEST_COLOURED = 50_000;  // characters of a code block that is highlighted
const FORMULA = { throwOnError: true, trust: false, maxSize: 20, maxExpand: 100, strict: "ignore" };
const ALLOWED = { ADD_ATTR: ["target"], FORBID_TAGS: ["img", "style", "form"], FORBID_ATTR: ["style", "id"], RETURN_DOM_FRAGMENT: true };

const md = new MarkdownIt({ linkify: true, breaks: true });
const { escapeHtml } = md.utils;
md.use(tasklist, { label: false });
md.use(tex, { delimiters: "all", render: (source, block) => `<span class="formula${block ? " block" : ""}">${escapeHtml(source)}</span>` });
md.linkify.set({ fuzzyLink: false, fuzzyEmail: false });  // main.py is not a site
// Loading an image would tell its site about this conversation and its reader; so it becomes a link.
md.renderer.rules.image = (tokens, i) => `<a href="${escapeHtml(tokens[i].attrGet("src"))}">${escapeHtml(tokens[i].content || "picture")}</a>`;

// Headings of an answer are below the page's own headings, and skip no level, whatever levels the model uses.
md.core.ruler.push("levels", ({ tokens, env }) => {
  const levels = env.levels ??= [];
  for (const token of tokens) {
    if (token.type === "heading_open") {
      while (levels.at(-1) >= +token.tag[1]) levels.pop();
      levels.push(+token.tag[1]);
    }
    if (token.type.startsWith("heading_")) token.tag = `h${Math.min(6, 2 + levels.length)}`;
  }
});

// The alignment of columns as an attribute, since the content security policy allows no style attributes.
md.core.ruler.push("alignment", ({ tokens }) => {
  for (const token of tokens) {
    const side = token.attrGet("style")?.replace("text-align:", "");
    if (side) token.attrs = [["align", side]];
  }
});

/** The DOM nodes of a text. `known` is markdown-it's environment: what earlier parts of the same text have defined. */
function elements(text, known) {
  const fragment = DOMPurify.sanitize(md.render(text, known), ALLOWED);
  for (const link of fragment.querySelectorAll("a")) Object.assign(link, { target: "_blank", rel: "noopener noreferrer" });
  for (const block of fragment.querySelectorAll("p, li, h3, h4, h5, h6, ul, ol, blockquote, th, td")) block.dir = "auto";
  for (const box of fragment.querySelectorAll("input")) box.ariaLabel = box.parentElement.textContent.trim() || "task";
  for (const table of fragment.querySelectorAll("table")) scrolling(table, "Table");
  for (const pre of fragment.querySelectorAll("pre")) scrolling(pre, "Code");
  return fragment;
}

/** Puts an element that may be wider than the page into a box that scrolls, also by keyboard. */
function scrolling(element, name) {
  const box = make("div", { className: "wide", tabIndex: 0, role: "group", ariaLabel: name });
  element.replaceWith(box);
  box.append(element);
}

/** Adds what needs complete blocks: highlighted code with a button to copy it, and formulas. */
function finish(fragment) {
  for (const code of fragment.querySelectorAll("pre > code")) {
    const language = /language-(\S+)/.exec(code.className)?.[1] ?? "", text = code.textContent;
    if (hljs.getLanguage(language) && text.length <= LONGEST_COLOURED) {
      code.replaceChildren(DOMPurify.sanitize(hljs.highlight(text, { language }).value, ALLOWED));
    }
    const copy = button("Copy", () => navigator.clipboard.writeText(text), { ariaLabel: "Copy code" });
    code.closest(".wide").before(make("div", { className: "bar" }, make("span", { textContent: language }), copy));
  }
  for (const span of fragment.querySelectorAll(".formula")) formula(span);
  return fragment;
}

function formula(span) {
  const source = span.textContent;
  try {
    katex.render(source, span, { ...FORMULA, displayMode: span.classList.contains("block") });
  } catch {  // show the source
    span.replaceChildren(make("code", { textContent: source }));
  }
}

export const markdown = text => finish(elements(text, {}));

/** The index in complete lines of the block that later lines may still change, and whether it continues a list before it. */
function lastBlock(lines) {
  const tokens = [];
  md.block.parse(lines, md, {}, tokens);
  let line = 0, items = 0;
  for (const token of tokens) {
    const item = token.type === "list_item_open" && token.level === 1;
    if (!token.map || token.nesting < 0 || token.level > 0 && !item) continue;
    [line, items] = [token.map[0], item ? items + 1 : 0];
  }
  let at = 0;
  for (; line; line--) at = lines.indexOf("\n", at) + 1;
  return [at, items > 1];
}

/** Draws a text into `box` while it is being generated. */
export class Growing {
  constructor(box) {
    this.tail = make("div", { className: "tail" });
    Object.assign(this, { box, done: 0, lines: 0, shown: 0, known: {}, list: null, code: null });
    box.append(this.tail);
  }

  /** Draw the text so far, which begins with the text of the last call. */
  grow(text) {
    if (this.code && !/^ *(```|~~~)/m.test(text.slice(text.lastIndexOf("\n", this.shown - 1) + 1))) {
      this.code.append(text.slice(this.shown));
    } else {
      const lines = text.lastIndexOf("\n") + 1;
      if (lines > this.lines) this.#finishBlocks(text, lines);
      this.#drawTail(text.slice(this.done));
    }
    this.shown = text.length;
  }

  /** Draw the complete text. */
  end(text) {
    this.#add(text.slice(this.done), false);
    this.tail.remove();
  }

  #finishBlocks(text, lines) {
    this.lines = lines;
    const [at, inList] = lastBlock(text.slice(this.done, lines));
    if (!at) return;
    this.#add(text.slice(this.done, this.done + at), inList);
    this.done += at;
  }

  #add(text, listGoesOn) {
    const fragment = finish(elements(text, this.known));
    const [first] = fragment.children;
    if (this.list && first?.tagName === this.list.tagName) {
      this.list.append(...first.childNodes);
      first.remove();
    }
    const last = fragment.lastElementChild ?? this.list;
    this.tail.before(fragment);
    this.list = listGoesOn ? last : null;
    this.tail.classList.toggle("item", listGoesOn);
  }

  #drawTail(rest) {
    const fragment = elements(rest, structuredClone(this.known));
    const open = /^ {0,3}(```|~~~)[^\n]*\n/.test(rest) && !/\n *(```|~~~)/.test(rest);  // an unclosed code block
    this.code = open ? fragment.querySelector("pre > code") : null;
    this.tail.replaceChildren(fragment.hasChildNodes() || this.done ? fragment : "…");
  }
}
