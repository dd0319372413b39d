// The fixed parts of the chat: the header, the log of the conversation, the form and the options below it.
import { button, make, sign } from "./dom.js";

/** Builds the parts in `chat.host`, and returns those that change later. */
export function layout(chat) {
  const heading = make("h2", { dir: "auto" }), model = make("select", { className: "model", ariaLabel: "Model", onchange: () => chat.chooseModel() });
  const log = make("section", { className: "log", ariaLabel: "Conversation", tabIndex: 0 });
  const status = make("div", { className: "status hidden", role: "status" }), panel = make("span", { className: "panel" });
  const beside = make("input", { type: "checkbox", className: "beside" });
  const consent = make("input", { type: "checkbox", className: "consent", onchange: () => { localStorage.tenfoldConsent = consent.checked ? "yes" : ""; } });
  const consentLabel = make("label", { hidden: true }, consent, " my chats may improve the model");
  const { settings, list, branches } = chat;
  const menu = sign("☰", "Conversations", () => chat.listed(menu.ariaExpanded !== "true"), { className: "narrow", ariaExpanded: "false" });
  const opens = sign("⚙", "Settings", () => {
    settings.box.hidden = !settings.box.hidden;
    opens.ariaExpanded = !settings.box.hidden;
  }, { ariaExpanded: "false" });
  const forks = sign("⑂", "Branches", () => {
    branches.box.hidden = !branches.box.hidden;
    forks.ariaExpanded = !branches.box.hidden;
    branches.draw();
  }, { ariaExpanded: "false" });
  const header = make("header", {}, menu, heading, model, forks, opens, sign("+", "New chat", () => chat.open(null), { className: "narrow" }));
  const options = make("div", { className: "options" }, make("label", {}, beside, " side by side"), consentLabel, panel);
  const written = form(chat);
  chat.host.classList.add("tenfold-chat");
  chat.host.replaceChildren(list.box, make("div", { className: "talk" }, header, settings.box, branches.box, log, status, written.box, options));
  return { heading, model, log, status, panel, beside, consent, consentLabel, menu, ...written };
}

function form(chat) {
  const { files } = chat;
  const takeFiles = (event, { files: given }) => {
    if (!given.length) return;
    event.preventDefault();
    files.add([...given]);
  };
  const message = make("textarea", { className: "say", dir: "auto", rows: 1, placeholder: "Write a message", ariaLabel: "Message" });
  const send = make("button", { textContent: "Send", className: "send main", disabled: true });  // until the server's models are known
  const stop = button("Stop", () => chat.stop(), { className: "stop", hidden: true });
  const box = make("form", { onsubmit: event => {
    event.preventDefault();
    const text = message.value.trim();
    if ((text || files.files.length) && chat.isReady && chat.send(chat.last, text, files.take())) message.value = "";
  } }, files.rows, files.button, files.input, message, send, stop);
  message.onpaste = event => takeFiles(event, event.clipboardData);
  chat.host.addEventListener("dragover", event => event.preventDefault());
  chat.host.addEventListener("drop", event => takeFiles(event, event.dataTransfer));
  message.onkeydown = event => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    box.requestSubmit();
  };
  return { box, message, send, stop };
}
