// Charts on uPlot: lines with bands, marks with intervals; zoom by dragging or by keys; saved as PNG, SVG and CSV; the same data as a
// table for those who do not see the picture.
import uPlot from "./libraries/uplot.js";
import { button, element, save, table, words } from "./figures.js";
import { svgOf, ticks } from "./svg.js";
import { drawMark, outline } from "./marks.js";

export const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [5, 5], [12, 6], [1, 4], [6, 2, 2, 2]];
const ROWS = 200;  // of the table, at most

/**
 * A chart, appended to `main`.
 * @param {object} given `title`; `x`, the x values of all series without an `x` of their own; `series`, a list of objects with
 *   `label`, `values`, `x`, `low` and `high` (a band, or the intervals of marks), `dash` (an index of DASHES), `colour` (0 to 7),
 *   `mark` ("dot", "square", "star", "triangle"), `line` (false: marks only) and `amounts` (for an area between `low` and `high`
 *   its height, which is shown as the value); `log` ("", "x", "y", "xy"); `xLabel`; `unit` of the values; `tall`;
 *   `onRange(from, to)`, called when a person zooms, with nulls for the whole range.
 * @returns {{element, update, range, cursor}} `update({x, series})` shows other data, `range(from, to)` a range of x, and
 *   `cursor(x)` sets the cursor.
 */
export function chart(main, given) {
  const state = { ...given, series: styled(given.series), plot: null, own: false };
  const box = element("div", { class: given.tall ? "plot tall" : "plot", tabindex: 0, role: "group", "aria-label": `${given.title}: drag or + and - to zoom, arrows to move, 0 for the whole` });
  const [readout, legend, data] = [element("div", { class: "readout" }), element("ul", { class: "legend" }), element("details", {}, element("summary", {}, "Data as a table"))];
  const figure = element("figure", {}, element("figcaption", {}, given.title), legend, box, readout, element("div", { class: "tools" }, savers(state)), data);
  main.append(figure);
  Object.assign(state, { box, readout, legend, data });
  data.addEventListener("toggle", () => fillTable(state));
  new ResizeObserver(() => resize(state)).observe(box);
  box.addEventListener("scheme", () => redraw(state));
  box.addEventListener("keydown", event => press(state, event));
  showLegend(state);
  return {
    element: figure,
    update({ x = state.x, series }) { Object.assign(state, { x, series: styled(series) }); renew(state); showLegend(state); fillTable(state); },
    cursor(x) { state.plot?.setCursor({ left: state.plot.valToPos(x, "x"), top: 0 }); },
    range(from, to) { state.from = from; state.to = to; setRange(state, from, to); },
  };
}

/** The page's colours as CSS values for the canvas. */
function colours(box) {
  const probe = element("span");
  box.append(probe);
  const read = name => { probe.style.color = `var(--${name})`; return getComputedStyle(probe).color; };
  const found = { text: read("faint"), line: read("line"), back: read("back"), series: [0, 1, 2, 3, 4, 5, 6, 7].map(n => read(`c${n}`)) };
  probe.remove();
  return found;
}

/** The series with colours and dashes, by their index where none are given. */
const styled = series => series.map((one, i) => ({ ...one, colour: (one.colour ?? i) % 8, dashes: DASHES[(one.dash ?? i) % DASHES.length] }));

/** Stacked areas from `{label, amounts, colour}`: each lies between the sums of `amounts` before and including it. */
export function stacked(series) {
  let below = new Array(series[0]?.amounts.length ?? 0).fill(0);
  return series.map((one, i) => {
    const low = below;
    below = low.map((value, place) => value + one.amounts[place]);
    return { ...one, colour: one.colour ?? i, dash: 0, values: below, low, high: below };
  });
}

const isBand = one => one.low && one.line !== false;

/** The sorted union of several lists; a value occurs as often as in the list that has it most often. */
function union(lists) {
  const times = new Map();
  for (const list of lists) {
    const own = new Map();
    for (const place of list) own.set(place, (own.get(place) ?? 0) + 1);
    for (const [place, count] of own) times.set(place, Math.max(count, times.get(place) ?? 0));
  }
  return [...times].sort(([a], [b]) => a - b).flatMap(([place, count]) => new Array(count).fill(place));
}

/** The x values of all series in one sorted list, and each series' columns at them, with null where it has no value. */
export function columns({ x, series }) {
  if (!series.some(one => one.x)) return { places: x, rows: series.map(one => ({ values: one.values, low: one.low, high: one.high, amounts: one.amounts })) };
  const places = union(series.map(one => one.x ?? x));
  const first = new Map(places.map((place, i) => [place, i]).reverse());
  const spread = (own, values) => {
    if (!values) return values;
    const made = new Array(places.length).fill(null), seen = new Map();
    own.forEach((place, i) => {
      const before = seen.get(place) ?? 0;
      made[first.get(place) + before] = values[i];
      seen.set(place, before + 1);
    });
    return made;
  };
  return { places, rows: series.map(one => Object.fromEntries(["values", "low", "high", "amounts"].map(name => [name, spread(one.x ?? x, one[name])]))) };
}

/** The data for uPlot: each series, followed by the two ends of its interval if it has one. */
function aligned(state) {
  const { places, rows } = state.shown = columns(state);
  return [places, ...rows.flatMap(row => row.low ? [row.values, row.low, row.high] : [row.values])];
}

/** Shows other data in the same plot, or in a new one where the number of columns differs. */
function renew(state) {
  const data = aligned(state);
  if (data.length === state.plot?.series.length) state.plot.setData(data); else redraw(state);
}

function redraw(state) {
  state.plot?.destroy();
  state.plot = null;
  const { box } = state;
  if (!box.clientWidth || !box.clientHeight) return;
  state.colours = colours(box);
  state.plot = new uPlot(options(state), aligned(state), box);
  state.plot.root.setAttribute("aria-hidden", "true");
  if (state.from != null) setRange(state, state.from, state.to);
}

/** Fits the plot to its box. A plot that is no part of the page is destroyed, so that it holds no memory. */
function resize(state) {
  const { box, plot } = state;
  if (!plot || !box.isConnected) redraw(state);
  else if (box.clientWidth) plot.setSize({ width: box.clientWidth, height: box.clientHeight });
}

function options(state) {
  const { box, log = "", xLabel = "", unit = "", colours: { text, line } } = state;
  const splits = name => log.includes(name) ? { splits: (_, __, min, max) => ticks({ min, max }, true), filter: (_, found) => found } : {};
  const size = Math.round(0.8 * parseFloat(getComputedStyle(document.documentElement).fontSize)), font = `${size}px system-ui`;
  const axis = (label, name) => ({ ...splits(name), label, labelSize: 1.7 * size, labelFont: font, font, stroke: text, grid: { stroke: line, width: 1 }, ticks: { stroke: line }, values: (_, found) => found.map(value => value === null ? "" : words(value)) });
  const padded = (_, low, high) => low === null ? [1, 10] : [low / (high / low) ** 0.05, high * (high / low || 2) ** 0.05];
  const scale = name => log.includes(name) ? { time: false, distr: 3, range: padded } : { time: false };
  const { series, bands } = seriesOf(state);
  return {
    width: box.clientWidth, height: box.clientHeight, legend: { show: false }, scales: { x: scale("x"), y: scale("y") },
    axes: [axis(xLabel, "x"), { ...axis(unit, "y"), size: 5.4 * size }], series: [{}, ...series], bands,
    cursor: { drag: { x: true, y: false }, points: { show: false } },
    hooks: {
      drawSeries: [(plot, i) => drawMarks(state, plot, i)],
      setCursor: [plot => read(state, plot)],
      setSelect: [() => { state.own = true; }],
      setScale: [(plot, name) => { if (name === "x") told(state, plot); }],
    },
  };
}

function seriesOf(state) {
  const series = [], bands = [];
  state.series.forEach(one => {
    const stroke = state.colours.series[one.colour];
    const shown = one.line !== false;
    series.push({ label: one.label, stroke, width: shown ? 2 : 0, dash: one.dashes, ...(shown ? {} : { paths: () => null }), points: { show: false }, spanGaps: true, mark: one });
    if (!one.low) return;
    const end = { stroke: "transparent", width: 0, points: { show: false }, spanGaps: true, ...(shown ? {} : { paths: () => null }) };
    series.push({ ...end, label: `${one.label}, low` }, { ...end, label: `${one.label}, high` });
    if (isBand(one)) bands.push({ series: [series.length, series.length - 1], fill: stroke.replace(/^rgb\((.*)\)$/, `rgba($1, ${one.amounts ? 0.55 : 0.18})`) });
  });
  return { series, bands };
}

/** Draws the marks of a series, each with its interval. */
function drawMarks(state, plot, number) {
  const { mark: one } = plot.series[number];
  if (!one?.mark) return;
  const { ctx } = plot;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = state.colours.series[one.colour];
  ctx.lineWidth = 1.5 * devicePixelRatio;
  ctx.setLineDash([]);
  plot.data[0].forEach((place, i) => {
    const value = plot.data[number][i];
    if (value === null || value === undefined || place < plot.scales.x.min || place > plot.scales.x.max) return;
    const at = (y) => plot.valToPos(y, "y", true);
    const x = plot.valToPos(place, "x", true);
    if (one.low && one.line === false) {
      ctx.beginPath(); ctx.moveTo(x, at(plot.data[number + 1][i])); ctx.lineTo(x, at(plot.data[number + 2][i])); ctx.stroke();
    }
    drawMark(ctx, one.mark, x, at(value), 5 * devicePixelRatio);
  });
  ctx.restore();
}

/** Writes the values at the cursor below the chart. */
function read(state, plot) {
  const i = plot.cursor.idx;
  if (i === null || i === undefined) { state.readout.textContent = ""; return; }
  const values = state.series.map((one, n) => {
    const value = (state.shown.rows[n].amounts ?? state.shown.rows[n].values)[i];
    return value === null || value === undefined ? "" : `${one.label} ${words(value)}`;
  });
  state.readout.textContent = [`${state.xLabel ?? ""} ${words(plot.data[0][i])}`, ...values.filter(Boolean)].join(" · ");
}

function setRange(state, from, to) {
  const { plot } = state;
  if (!plot) return;
  const places = plot.data[0];
  plot.setScale("x", { min: from ?? places[0], max: to ?? places.at(-1) });
}

/** Reports the range that a person has chosen. */
function told(state, plot) {
  if (!state.own) return;
  state.own = false;
  state.onRange?.(plot.scales.x.min, plot.scales.x.max);
}

function whole(state) {
  state.from = state.to = null;
  setRange(state, null, null);
  state.onRange?.(null, null);
}

function press(state, event) {
  const { plot } = state;
  if (!plot || event.ctrlKey || event.metaKey || event.altKey) return;
  const { min, max } = plot.scales.x;
  const log = state.log?.includes("x");
  const [a, b] = log ? [Math.log(min), Math.log(max)] : [min, max];
  const [middle, half] = [(a + b) / 2, (b - a) / 2];
  const moves = { "+": [middle, half / 2], "=": [middle, half / 2], "-": [middle, half * 2], ArrowLeft: [middle - half / 4, half], ArrowRight: [middle + half / 4, half] };
  if (event.key === "0") whole(state);
  else if (moves[event.key]) {
    const ends = [moves[event.key][0] - moves[event.key][1], moves[event.key][0] + moves[event.key][1]].map(end => log ? Math.exp(end) : end);
    state.own = true;
    plot.setScale("x", { min: ends[0], max: ends[1] });
  } else return;
  event.preventDefault();
}

function showLegend(state) {
  state.legend.replaceChildren(...state.series.map(one => element("li", {}, outline(one), one.label)));
}

/** Buttons that save the picture and its data. */
function savers(state) {
  const name = state.title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  const png = () => onGround(state).toBlob(blob => save(`${name}.png`, blob));
  const svg = () => save(`${name}.svg`, new Blob([svgOf(state, columns(state))], { type: "image/svg+xml" }));
  const csv = () => save(`${name}.csv`, new Blob([csvOf(state)], { type: "text/csv" }));
  return [["PNG", png], ["SVG", svg], ["CSV", csv]].map(([kind, act]) => button(kind, act, { "aria-label": `${kind} of ${state.title}` }));
}

function onGround({ plot, colours: { back } }) {
  const { canvas } = plot.ctx;
  const copy = element("canvas", { width: canvas.width, height: canvas.height });
  const context = copy.getContext("2d");
  context.fillStyle = back;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(canvas, 0, 0);
  return copy;
}

const hasEnds = one => one.low && !one.amounts;
const headsOf = ({ xLabel, series }) => [xLabel || "x", ...series.flatMap(one => hasEnds(one) ? [one.label, `${one.label}, low`, `${one.label}, high`] : [one.label])];

/** The columns for the table and the CSV: x values, and each series' values with the ends of its intervals, or its amounts. */
function toldOf(state) {
  const { places, rows } = columns(state);
  return [places, ...rows.flatMap(row => row.amounts ? [row.amounts] : row.low ? [row.values, row.low, row.high] : [row.values])];
}

/** The data of a chart as CSV. */
export function csvOf(state) {
  const data = toldOf(state);
  return csvText([headsOf(state), ...data[0].map((_, i) => data.map(column => column[i]))]);
}

/** Rows as CSV. A cell that a spreadsheet would take for a formula gets an apostrophe in front. */
export function csvText(rows) {
  const cell = text => /^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
  const quoted = value => { const text = cell(String(value ?? "")); return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text; };
  return rows.map(row => row.map(quoted).join(",")).join("\r\n") + "\r\n";
}

function fillTable(state) {
  if (!state.data.open) return;
  const data = toldOf(state);
  const every = Math.ceil(data[0].length / ROWS);
  const rows = [];
  for (let i = 0; i < data[0].length; i += every) rows.push(data.map(column => column[i]));
  const said = every > 1 ? `${state.title}, every ${every}th row; the CSV has all` : state.title;
  state.data.lastElementChild?.matches(".wide") && state.data.lastElementChild.remove();
  state.data.append(table(headsOf(state), rows, said));
}
