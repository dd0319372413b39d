// Helpers that make elements. Texts of users and models are set as text, never as HTML.

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export const button = (name, onclick, more = {}) => make("button", { type: "button", textContent: name, onclick, ...more });

/** A button that shows a symbol, with its name as label and tooltip. */
export const sign = (shown, name, onclick, more = {}) => button(shown, onclick, { ariaLabel: name, title: name, ...more });

/** A button that is on or off. */
export function toggle(name, on, onclick) {
  const made = button(name, onclick);
  made.setAttribute("aria-pressed", on);
  return made;
}

/** A text box with a button that calls `take` with the text, and one that calls `leave`. */
export function editor(box, action, take, leave) {
  box.addEventListener("keydown", event => {
    if (event.key === "Enter" && box.tagName === "INPUT" && !event.isComposing) take(box.value);
    if (event.key === "Escape") { event.stopPropagation(); leave(); }
  });
  queueMicrotask(() => box.select());
  return [box, button(action, () => take(box.value)), button("Cancel", leave)];
}

/** Asks in a dialog within `host`. Resolves to the text typed into `field`, "" without a field, null if it was dismissed. */
export function question(host, text, action, field) {
  return new Promise(answer => {
    const close = value => { dialog.close(); dialog.remove(); answer(value); };
    const input = field && make("input", { type: "password", ariaLabel: field, autocomplete: "off", required: true });
    const form = make("form", { onsubmit: event => { event.preventDefault(); close(input?.value ?? ""); } }, make("p", { textContent: text }));
    if (input) form.append(input);
    form.append(make("div", { className: "tools" }, make("button", { textContent: action, className: "main" }), button("Cancel", () => close(null))));
    const dialog = make("dialog", { ariaLabel: text, oncancel: () => close(null) }, form);
    dialog.addEventListener("keydown", event => event.stopPropagation());
    host.append(dialog);
    dialog.showModal();
  });
}

/** Has the browser save a text as a file. */
export function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address));
}
