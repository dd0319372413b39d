// Tool calls in an answer, with function and arguments; and their results, which the user writes.
import { button, make } from "./dom.js";

/** The elements of an answer's calls; arguments in JSON are formatted. */
export const calls = made => made.map(({ name, arguments: given }) => make("div", { className: "call" },
  make("span", { textContent: `Calls ${name}` }), make("pre", { textContent: laidOut(given), tabIndex: 0, ariaLabel: `Arguments of ${name}` })));

function laidOut(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 1);
  } catch {
    return text;  // incomplete, or not JSON
  }
}

/** A form for the results of calls; `send` gets them, each with the id and the name of its call. */
export function resultsForm(made, send) {
  const boxes = made.map(call => make("textarea", { rows: 2, dir: "auto", ariaLabel: `Result of ${call.name}`, placeholder: `What ${call.name} gave` }));
  return make("div", { className: "results" }, ...boxes,
    button("Send results", () => send(made.map(({ id, name }, i) => ({ id, name, text: boxes[i].value })))));
}

/** The elements of the results of calls. */
export const results = given => given.map(({ name, text }) => make("div", { className: "call" },
  make("span", { textContent: `${name} gave` }), make("pre", { textContent: text, tabIndex: 0, ariaLabel: `Result of ${name}` })));

/** Parses tools in JSON: functions, or tools that contain one. Throws an Error of one sentence. */
export function readTools(text) {
  if (!text?.trim()) return undefined;
  let read;
  try {
    read = [JSON.parse(text)].flat();
  } catch {
    throw new Error("The tools are not JSON.");
  }
  const tools = read.map(one => one?.type === "function" ? one : { type: "function", function: one });
  if (tools.some(tool => typeof tool.function?.name !== "string")) throw new Error("A tool needs its function's name.");
  return tools;
}
