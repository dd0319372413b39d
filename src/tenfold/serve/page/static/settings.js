// What a conversation is answered with: a system prompt, the temperature, the longest length. A new one begins with the last.
import { make } from "./dom.js";

const DEFAULT = { system: "", temperature: .7 };

export function lastSettings() {
  try {
    return { ...DEFAULT, ...JSON.parse(localStorage.tenfoldSettings) };
  } catch {
    return { ...DEFAULT };
  }
}

/** The panel of settings. `changed` is called when the conversation's were. */
export class Settings {
  constructor(conversation, changed) {
    const read = (input, value) => () => {
      if (!input.reportValidity()) return;
      const { settings } = conversation();
      settings[input.name] = value(input.value);
      localStorage.tenfoldSettings = JSON.stringify(settings);
      changed();
    };
    const number = text => text === "" ? undefined : Number(text);
    this.system = make("textarea", { name: "system", rows: 2, dir: "auto", placeholder: "How the model shall answer" });
    this.temperature = make("input", { type: "number", name: "temperature", min: 0, max: 2, step: .1, placeholder: "1" });
    this.longest = make("input", { type: "number", name: "max_tokens", min: 1, step: 1, placeholder: "as fits" });
    this.system.onchange = read(this.system, text => text);
    this.temperature.onchange = read(this.temperature, number);
    this.longest.onchange = read(this.longest, number);
    this.box = make("section", { className: "settings", hidden: true, ariaLabel: "Settings" },
      make("label", {}, "System prompt", this.system), make("label", {}, "Temperature", this.temperature), make("label", {}, "Longest answer, in tokens", this.longest));
  }

  show({ system, temperature, max_tokens }) {
    this.system.value = system ?? "";
    this.temperature.value = temperature ?? "";
    this.longest.value = max_tokens ?? "";
  }
}
