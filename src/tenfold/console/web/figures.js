// Builds elements, and figures that link to their files. Content is set as text, never as HTML.

/** Creates an element. Attributes named `on...` are event listeners; `null`, `undefined` and `false` are left out. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter(child => child !== null && child !== undefined));
  return made;
}

/** The address of a file of the home, relative to the page. */
export const address = file => `files/${file.split("/").map(encodeURIComponent).join("/")}`;

/** A link to a file of the home by its name. */
export const fileLink = (file, text = file) => element("a", { href: address(file) }, text);

/** A value as text: fractions with four digits, integers with all, very large and very small numbers with a power of ten. */
export function words(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return String(value);
  if (value !== 0 && (Math.abs(value) >= 1e7 || Math.abs(value) < 1e-3)) {
    const [digits, power] = value.toExponential(2).split("e");
    const times = Number(digits) === 1 ? "" : `${Number(digits)}×`;
    return `${times}10${superscript(Number(power))}`;
  }
  return Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(4)).toLocaleString("en", { maximumFractionDigits: 6 });
}

/** An integer in superscript digits. */
export const superscript = number => String(number).replace(/./g, sign => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(sign)]);

// Smaller units for values below 1, and larger units from a size on.
const SMALLER = { days: [24, "h"], h: [60, "min"], min: [60, "s"], MWh: [1000, "kWh"], kWh: [1000, "Wh"], MW: [1000, "kW"], kW: [1000, "W"] };

const LARGER = { USD: [1e6, "million USD"], "million USD": [1e3, "billion USD"] };

/** Values in the unit in which the first one is easiest to read, and that unit. */
function readable(values, unit) {
  const [size, larger] = LARGER[unit] ?? [];
  if (Math.abs(values[0]) >= size) return readable(values.map(value => value / size), larger);
  const [times, smaller] = SMALLER[unit] ?? [];
  return times && values[0] !== 0 && Math.abs(values[0]) < 1 ? readable(values.map(value => value * times), smaller) : [values, unit];
}

/** A Figure as a link to its file: rounded, with unit and interval; its title has the exact value, file and key. Computed values and
 * those in a database are no links. */
export function figure(f, note = "") {
  if (f === null || f === undefined) return element("span", { class: "none" }, "–");
  const bounded = f.low !== undefined && f.low !== null;
  const [[value, low, high], unit] = typeof f.value === "number" ? readable(bounded ? [f.value, f.low, f.high] : [f.value], f.unit) : [[f.value], f.unit];
  const ends = bounded ? ` [${words(low)} to ${words(high)}]` : "";
  const said = [`${words(value)}${unit ? ` ${unit}` : ""}`, element("small", {}, ends, note ? ` ${note}` : "")];
  const exact = `${f.value}${f.unit ? ` ${f.unit}` : ""}`;
  if ("computed" in f) return element("span", { class: "computed", title: `${exact} (${f.computed})`, "data-value": JSON.stringify(f.value) }, said);
  const place = { class: "figure", title: `${exact} (${f.file}, ${f.key})`, "data-value": JSON.stringify(f.value), "data-file": f.file, "data-key": f.key };
  return f.file.endsWith(".db") ? element("span", place, said) : element("a", { href: address(f.file), ...place }, said);
}

/** The content of a cell: a Figure as `figure` shows it, an element as it is, another value as text. */
export const shown = value => value instanceof Node ? value : value !== null && typeof value === "object" && ("file" in value || "computed" in value) ? figure(value) : words(value);

/** A table. The first cell of each row is its header. */
export function table(heads, rows, caption = "") {
  const head = element("tr", {}, heads.map(text => element("th", { scope: "col" }, text)));
  const body = rows.map(([first, ...others]) => element("tr", {}, element("th", { scope: "row" }, shown(first)), others.map(cell => element("td", {}, shown(cell)))));
  const made = element("table", {}, caption ? element("caption", {}, caption) : null, element("thead", {}, head), element("tbody", {}, body));
  return element("div", { class: "wide", tabindex: 0, role: "group", "aria-label": caption || "Table" }, made);
}

/** A description list of [term, value] pairs. */
export const facts = pairs => element("dl", {}, pairs.map(([term, value]) => element("div", {}, element("dt", {}, term), element("dd", {}, shown(value)))));

/** A placeholder for missing content: a sentence, and the command that makes it. */
export const empty = (text, command = "") => element("p", { class: "empty" }, `${text} `, command ? element("code", {}, command) : null);

/** A part of a view under a heading. */
export const section = (title, ...children) => element("section", {}, element("h2", {}, title), ...children);

/** A button. */
export const button = (text, onclick, more = {}) => element("button", { type: "button", onclick, ...more }, text);

/** Has the browser save a blob as a file. */
export function save(name, blob) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
