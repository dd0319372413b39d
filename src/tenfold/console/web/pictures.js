// Figures other than line charts: a stacked bar and a heat map, saved as PNG, SVG and CSV, with their data as a table.
import { csvOf } from "./chart.js";
import { button, element, save, table, words } from "./figures.js";
import { drawn } from "./marks.js";

const WIDTH = 1000;  // in units of the drawing, which is scaled to its column
const TALLEST = 24;  // greatest height of an expert's row
const PAINT = ["fill", "fill-opacity", "stroke"];

/**
 * Parts of a whole as one stacked bar with a legend.
 * @param {object} given `title`, `unit`, and `parts`: pairs of a name and a number.
 */
export function bar(main, { title, unit, parts }) {
  const whole = parts.reduce((sum, [, value]) => sum + Math.max(0, value), 0) || 1;
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} 40`, preserveAspectRatio: "none", class: "bar", "aria-hidden": "true" });
  let x = 0;
  parts.forEach(([name, value], i) => {
    const width = WIDTH * Math.max(0, value) / whole;
    svg.append(drawn("rect", { x, y: 0, width, height: 40, class: `paint c${i}` }, drawn("title", {}, `${name}: ${words(value)} ${unit}`)));
    x += width;
  });
  const key = parts.map(([name, value], i) => element("li", {}, element("span", { class: `patch c${i}` }), `${name} ${words(value)} ${unit} (${words(Math.round(1000 * value / whole) / 10)} %)`));
  const data = { xLabel: unit, x: [title], series: parts.map(([name, value]) => ({ label: name, values: [value] })) };
  framed(main, title, [element("ul", { class: "legend" }, key), svg], data);
}

/**
 * A heat map of shares over steps: a row for each expert, darker for larger shares.
 * @param {object} given `title`, `xLabel`, `x` and `rows` [experts, x] in thousandths.
 * @returns {Element} the figure
 */
export function heat(main, { title, xLabel, x, rows }) {
  const height = Math.min(TALLEST, Math.max(4, 400 / rows.length));
  const most = Math.max(1, ...rows.flat());
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${height * rows.length}`, preserveAspectRatio: "none", class: "heat", "aria-hidden": "true" });
  const width = WIDTH / x.length;
  rows.forEach((row, expert) => row.forEach((share, i) => svg.append(
    drawn("rect", { x: i * width, y: expert * height, width: width + 0.5, height, class: "paint c0", "fill-opacity": (share / most).toFixed(3) },
      drawn("title", {}, `expert ${expert}, step ${words(x[i])}: ${share / 10} %`)))));
  const key = element("p", { class: "readout" }, `${rows.length} experts from top to bottom, steps ${words(x[0])} to ${words(x.at(-1))}; the darkest is ${most / 10} % of the layer's tokens.`);
  const data = { xLabel, x, series: rows.map((row, expert) => ({ label: `expert ${expert}`, values: row.map(share => share / 1000) })) };
  return framed(main, title, [svg, key], data);
}

/** A figure with a title, buttons that save it, and its data as a table. */
function framed(main, title, shown, data) {
  const name = title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-");
  const svg = shown.find(one => one.tagName === "svg");
  const kinds = [
    ["PNG", async () => save(`${name}.png`, await pngOf(standalone(svg)))],
    ["SVG", () => save(`${name}.svg`, blobOf(standalone(svg)))],
    ["CSV", () => save(`${name}.csv`, new Blob([csvOf(data)], { type: "text/csv" }))],
  ];
  const tools = kinds.map(([kind, act]) => button(kind, act, { "aria-label": `${kind} of ${title}` }));
  const rows = () => data.x.map((place, i) => [place, ...data.series.map(one => one.values[i])]);
  const details = element("details", { ontoggle: () => details.children.length < 2 && details.append(table([data.xLabel, ...data.series.map(one => one.label)], rows(), title)) }, element("summary", {}, "Data as a table"));
  const figure = element("figure", {}, element("figcaption", {}, title), ...shown, element("div", { class: "tools" }, tools), details);
  main.append(figure);
  return figure;
}

/** A copy of a drawing with the page's colours written into its attributes. */
function standalone(svg) {
  const copy = svg.cloneNode(true);
  const [, , width, height] = svg.getAttribute("viewBox").split(" ");
  for (const [key, value] of Object.entries({ width, height })) copy.setAttribute(key, value);
  const shapes = copy.querySelectorAll(".paint");
  svg.querySelectorAll(".paint").forEach((shape, i) => {
    const style = getComputedStyle(shape);
    for (const key of PAINT) shapes[i].setAttribute(key, style.getPropertyValue(key));
  });
  return copy;
}

const blobOf = svg => new Blob([new XMLSerializer().serializeToString(svg)], { type: "image/svg+xml" });

/** The drawing as a PNG of its own size. */
async function pngOf(svg) {
  const address = URL.createObjectURL(blobOf(svg));
  const image = element("img", { src: address, alt: "" });
  await image.decode();
  const canvas = element("canvas", { width: svg.getAttribute("width"), height: svg.getAttribute("height") });
  canvas.getContext("2d").drawImage(image, 0, 0);
  URL.revokeObjectURL(address);
  return new Promise(done => canvas.toBlob(done));
}
