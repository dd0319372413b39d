// The settings of a conversation: system prompt, tools, temperature, longest answer. A new conversation gets the latest settings.
import { readTools } from "./calls.js";
import { make } from "./dom.js";

const DEFAULT = { system: "", temperature: .7 };

export function lastSettings() {
  try {
    return { ...DEFAULT, ...JSON.parse(localStorage.tenfoldSettings) };
  } catch {
    return { ...DEFAULT };
  }
}

/** The settings panel. `changed` is called when the settings of the conversation have changed. */
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
    this.system = make("textarea", { name: "system", rows: 2, dir: "auto", placeholder: "How the model should answer" });
    this.tools = make("textarea", { name: "tools", rows: 2, spellcheck: false, placeholder: '[{"name": "weather", "description": "…", "parameters": {…}}]' });
    this.temperature = make("input", { type: "number", name: "temperature", min: 0, max: 2, step: .1, placeholder: "1" });
    this.longest = make("input", { type: "number", name: "max_tokens", min: 1, step: 1, placeholder: "as fits" });
    this.system.onchange = read(this.system, text => text);
    this.tools.oninput = () => this.tools.setCustomValidity(wrong(this.tools.value));
    this.tools.onchange = read(this.tools, text => text);
    this.temperature.onchange = read(this.temperature, number);
    this.longest.onchange = read(this.longest, number);
    this.box = make("section", { className: "settings", hidden: true, ariaLabel: "Settings" },
      make("label", {}, "System prompt", this.system), make("label", {}, "Tools that the model may call, as JSON", this.tools), make("label", {}, "Temperature", this.temperature), make("label", {}, "Longest answer, in tokens", this.longest));
  }

  show({ system, tools, temperature, max_tokens }) {
    this.system.value = system ?? "";
    this.tools.value = tools ?? "";
    this.temperature.value = temperature ?? "";
    this.longest.value = max_tokens ?? "";
  }
}

/** Why a text is not a valid list of tools; "" if it is. */
function wrong(text) {
  try {
    readTools(text);
    return "";
  } catch (error) {
    return error.message;
  }
}
