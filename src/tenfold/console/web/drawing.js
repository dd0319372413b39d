// Figures around SVG drawings, with buttons that save them as PNG, SVG and CSV; and bars with intervals.
import { csvText } from "./chart.js";
import { button, element, figure, save } from "./figures.js";
import { drawn } from "./marks.js";

const PAINT = ["fill", "stroke", "stroke-width", "font-size", "font-family", "text-anchor"];
const [WIDTH, THICK] = [240, 16];  // of a bar

/** A figure with a title and a drawing. `rows` has the data for the CSV; the first row has the column names. */
export function picture(title, svg, rows) {
  const name = title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  const kinds = { PNG: () => png(svg, blob => save(`${name}.png`, blob)), SVG: () => save(`${name}.svg`, svgBlob(svg)), CSV: () => save(`${name}.csv`, new Blob([csvText(rows)], { type: "text/csv" })) };
  const buttons = Object.entries(kinds).map(([kind, act]) => button(kind, act, { "aria-label": `${kind} of ${title}` }));
  return element("figure", {}, element("figcaption", {}, title), element("div", { class: "wide", tabindex: 0, role: "group", "aria-label": title }, svg), element("div", { class: "tools" }, buttons));
}

/** A copy of a drawing as a blob, with the page's styles written into its attributes. */
function svgBlob(svg) {
  const copy = svg.cloneNode(true);
  const [own, copied] = [[svg, ...svg.querySelectorAll("*")], [copy, ...copy.querySelectorAll("*")]];
  own.forEach((one, i) => {
    const style = getComputedStyle(one);
    for (const name of PAINT) copied[i].setAttribute(name, style.getPropertyValue(name));
  });
  return new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" });
}

async function png(svg, done) {
  const image = new Image();
  image.src = URL.createObjectURL(svgBlob(svg));
  await image.decode();
  const { width, height } = svg.viewBox.baseVal;
  const canvas = element("canvas", { width: 2 * width, height: 2 * height });
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(document.body).backgroundColor;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(image.src);
  canvas.toBlob(done);
}

/** A table of bars from zero, with each part's figure and its interval as a line: `parts` are `{name, figure}`. */
export function bars(title, parts) {
  const most = Math.max(...parts.map(({ figure: f }) => f.high ?? f.value), Number.MIN_VALUE);
  const rows = parts.map(({ name, figure: f }, i) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, bar(f, most, i)), element("td", {}, figure(f))));
  return element("div", { class: "wide", tabindex: 0, role: "group", "aria-label": title }, element("table", { class: "bars" }, element("caption", {}, title), element("tbody", {}, rows)));
}

function bar({ value, low, high }, most, i) {
  const x = of => WIDTH * of / most;
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${THICK}`, width: WIDTH, height: THICK, class: `c${i % 8}`, "aria-hidden": "true" });
  svg.append(drawn("rect", { width: x(value).toFixed(1), height: THICK, class: "part" }));
  if (low !== undefined) svg.append(drawn("line", { x1: x(low), x2: x(high), y1: THICK / 2, y2: THICK / 2, class: "ends" }));
  return svg;
}
