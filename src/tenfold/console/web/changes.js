// Requests with the operator's key. It is asked for when the server needs one, and kept until the tab is closed.
import { button, element } from "./figures.js";

const KEPT = "tenfold-key";

/** A function that posts a change and returns the server's answer. Its property `reading` gets JSON in the same way. */
export function actor(host) {
  const send = async (path, options = {}) => {
    for (let refused = false; ; refused = true) {
      const key = sessionStorage.getItem(KEPT);
      const reply = await fetch(path, { ...options, headers: { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) } });
      if (reply.status !== 401 && reply.status !== 403) return answer(reply);
      const sentence = await sentenceOf(reply);
      if (refused) sessionStorage.removeItem(KEPT);
      const given = await askKey(host, sentence);
      if (given === null) throw new Error(sentence);
      sessionStorage.setItem(KEPT, given);
    }
  };
  const act = (path, body = {}) => send(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
  return Object.assign(act, { reading: path => send(path) });
}

async function answer(reply) {
  if (!reply.ok) throw new Error(await sentenceOf(reply));
  return reply.json();
}

async function sentenceOf(reply) {
  const said = await reply.json().catch(() => null);
  return said?.error?.message ?? `The server answered ${reply.status}.`;
}

/** Asks for the key in a dialog; resolves to null where that was dismissed. */
function askKey(host, sentence) {
  return new Promise(done => {
    const close = value => { dialog.remove(); done(value); };
    const input = element("input", { type: "password", "aria-label": "Key", autocomplete: "off", required: true });
    const form = element("form", { onsubmit: event => { event.preventDefault(); close(input.value); } },
      element("p", {}, sentence), input, element("button", {}, "Use this key"), button("Cancel", () => close(null)));
    const dialog = element("dialog", { "aria-label": "Key of an operator", oncancel: () => close(null) }, form);
    host.append(dialog);
    dialog.showModal();
  });
}
