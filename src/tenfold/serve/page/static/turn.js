// The element of one turn of a conversation: the speaker, the text, why it ended, and buttons for what can be done with it.
import { button, editor, make, sign, toggle } from "./dom.js";
import { shown } from "./attach.js";
import { calls, results, resultsForm } from "./calls.js";
import { chosen, parent } from "./conversation.js";
import { Growing, markdown } from "./markdown.js";

const ENDS = {
  length: "Cut: the longest length was reached.",
  stopped: "Stopped before its end.",
  cut: "Cut off: the connection ended before the answer did.",
  content_filter: "Cut by a filter of the server.",
};

/** The article element of a turn. Unfinished answers are put into the map `growing`, with which `grow` draws more of them. */
export function article(chat, turn, growing) {
  const box = make("article", { className: turn.role }, make("div", { className: "who", textContent: who(turn) }));
  if (turn.files?.length) box.append(make("div", { className: "files" }, ...turn.files.map(shown)));
  if (turn.role === "user") box.append(make("div", { className: "text", dir: "auto", textContent: turn.text, hidden: !turn.text }));
  else if (turn.role === "tool") box.append(...results(turn.results));
  else if (isOpen(turn)) box.append(make("div", { className: "sides" }, ...order(turn).map(answer => side(answer, growing))));
  else box.append(said(chosen(turn), growing));
  box.append(tools(chat, turn));
  return box;
}

const isOpen = turn => turn.answers?.length === 2 && turn.winner === undefined;

/** The two answers in the order in which they are shown. */
const order = turn => turn.swapped ? turn.answers.toReversed() : turn.answers;

function who(turn) {
  if (turn.role !== "assistant") return "You";
  return isOpen(turn) ? "Two answers" : chosen(turn).model;
}

function said(answer, growing) {
  const text = growing.get(answer)?.text.box ?? make("div", { className: "text", dir: "auto" }), box = make("div", {}, text);
  if (!answer.end) {
    const calling = make("div");
    box.append(calling);
    growing.set(answer, { text: new Growing(text), calling });
    grow(answer, growing);
  } else if (!growing.has(answer)) text.append(markdown(answer.text));
  if (answer.end && answer.calls) box.append(...calls(answer.calls));
  const mark = ENDS[answer.end] ?? (answer.end && !answer.error && !answer.text.trim() && !answer.calls ? "The answer is empty." : "");
  if (mark) box.append(make("p", { className: "mark", textContent: mark }));
  if (answer.error) box.append(make("p", { className: "error", textContent: answer.error }));
  return box;
}

/** Draws more of an unfinished answer: its text and its tool calls. */
export function grow(answer, growing) {
  const { text, calling } = growing.get(answer);
  text.grow(answer.text);
  if (answer.calls) calling.replaceChildren(...calls(answer.calls.filter(Boolean)));
}

function side(answer, growing) {
  const box = said(answer, growing);
  if (answer.end && answer.text.trim()) box.append(make("div", { className: "tools" }, copy(answer.text)));
  return box;
}

const copy = text => button("Copy", () => navigator.clipboard.writeText(text));

function tools(chat, turn) {
  const bar = make("fieldset", { className: "tools", ariaLabel: "Actions" }), again = () => chat.redraw(turn);
  bar.append(...versions(chat, turn));
  if (turn.role === "user") {
    bar.append(button("Edit", () => {
      const box = make("textarea", { value: turn.text, dir: "auto", ariaLabel: "Edit message" });
      bar.replaceChildren(...editor(box, "Send again", text => { again(); chat.send(parent(turn), text, turn.files); }, again));
    }), copy(turn.text));
  } else if (turn.role === "assistant" && turn.answers.every(answer => answer.end)) {
    bar.append(button("Retry", () => chat.retry(turn)));
    if (isOpen(turn)) bar.append(...choices(chat, turn));
    else bar.append(...ofAnswer(chat, turn, bar));
  }
  if (turn.note) bar.append(make("span", { textContent: turn.note }));
  return bar;
}

/** Buttons that show the other versions of a turn. */
function versions(chat, turn) {
  const siblings = parent(turn).children, at = siblings.indexOf(turn);
  if (siblings.length < 2) return [];
  return [sign("‹", "Earlier version", () => chat.show(turn, at - 1), { disabled: !at }), `${at + 1} / ${siblings.length}`,
    sign("›", "Later version", () => chat.show(turn, at + 1), { disabled: at + 1 === siblings.length })];
}

function ofAnswer(chat, turn, bar) {
  const answer = chosen(turn), made = answer.text.trim() ? [copy(answer.text)] : [], again = () => chat.redraw(turn);
  const isCut = answer.error || answer.end in ENDS;
  if (answer.calls && !isCut && !turn.children.length) bar.append(resultsForm(answer.calls, given => chat.sendResults(turn, given)));
  if (isCut && answer.text.trim() && !answer.calls && !turn.children.length) made.unshift(button("Continue", () => chat.goOn(turn)));
  if (!answer.stored || turn.answers.length > 1) return made;
  const rate = (value, reason) => chat.judge(turn, { rating: value, reasons: reason ? [reason] : [] }, () => { turn.rating = value; });
  const why = () => {
    const box = make("input", { ariaLabel: "What was wrong? (may stay empty)", placeholder: "What was wrong?", dir: "auto", maxLength: 200 });
    bar.replaceChildren(...editor(box, "Keep", text => rate(-1, text), again));
  };
  const correct = () => {
    const box = make("textarea", { value: answer.text, dir: "auto", ariaLabel: "Better answer" });
    const keep = text => chat.judge(turn, { correction: text }, () => { answer.text = text; });
    bar.replaceChildren(...editor(box, "Keep correction", keep, again));
  };
  return [...made, toggle("👍 Good", turn.rating === 1, () => rate(1)), toggle("👎 Bad", turn.rating === -1, why), button("Correct it", correct)];
}

/** Buttons to say which of two answers is better. They say left and right; the feedback says a for the first model and b for the second. */
function choices(chat, turn) {
  const [first, second] = turn.answers, [left, right] = turn.swapped ? ["b", "a"] : ["a", "b"];
  if (turn.answers.some(answer => answer.error || answer.end === "cut")) return [];
  const choose = (name, winner) => button(name, () => {
    const take = () => { turn.winner = winner === "b" ? 1 : 0; };
    if (!first.stored || !second.stored) { take(); return chat.redraw(turn); }
    return chat.judge(turn, { other_response_id: second.id, winner, blind: true, position_swapped: turn.swapped }, take);
  });
  return [choose("Left is better", left), choose("Right is better", right), choose("Equal", "tie"), choose("Both bad", "both_bad")];
}
