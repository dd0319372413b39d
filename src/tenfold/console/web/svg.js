// A chart as SVG, for print and documents.
import { words } from "./figures.js";
import { drawn, markOf } from "./marks.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [960, 540, 80, 60, 40];
const TICKS = 6;

/** A function from values to coordinates between two ends. */
function scale({ min, max }, log, from, to) {
  const of = log ? Math.log10 : value => value;
  return value => from + (to - from) * (of(value) - of(min)) / (of(max) - of(min) || 1);
}

/** Round values between two ends. On a logarithmic scale they are powers of ten, with 2 and 5 times them where these are few. */
export function ticks({ min, max }, log) {
  if (!log) {
    const step = 10 ** Math.floor(Math.log10((max - min) / TICKS || 1));
    const wide = [1, 2, 5, 10].map(times => times * step).find(one => (max - min) / one <= TICKS);
    return Array.from({ length: Math.floor(max / wide) - Math.ceil(min / wide) + 1 }, (_, i) => (Math.ceil(min / wide) + i) * wide);
  }
  const [low, high] = [Math.floor(Math.log10(min)), Math.ceil(Math.log10(max))];
  const times = high - low <= 2 ? [1, 2, 5] : [1];
  return Array.from({ length: high - low + 1 }, (_, i) => times.map(one => one * 10 ** (low + i))).flat().filter(tick => tick >= min && tick <= max);
}

/** The SVG text of a chart as it is shown: title, axes, bands, lines, marks and legend. */
export function svgOf({ title, xLabel = "", unit = "", log = "", series, plot, colours }, { places, rows }) {
  const x = scale(plot.scales.x, log.includes("x"), LEFT, WIDTH - 20), y = scale(plot.scales.y, log.includes("y"), HEIGHT - BOTTOM, TOP);
  const within = place => place >= plot.scales.x.min && place <= plot.scales.x.max;
  const svg = drawn("svg", { xmlns: "http://www.w3.org/2000/svg", viewBox: `0 0 ${WIDTH} ${HEIGHT + 22 * series.length}`, "font-family": "sans-serif", "font-size": 13 });
  const text = (said, at, more = {}) => drawn("text", { x: at[0], y: at[1], fill: colours.text, ...more }, said);
  svg.append(drawn("rect", { width: "100%", height: "100%", fill: colours.back }), text(title, [LEFT, 24], { "font-size": 16 }));
  for (const tick of ticks(plot.scales.x, log.includes("x"))) svg.append(drawn("line", { x1: x(tick), x2: x(tick), y1: TOP, y2: HEIGHT - BOTTOM, stroke: colours.line }), text(words(tick), [x(tick), HEIGHT - BOTTOM + 18], { "text-anchor": "middle" }));
  for (const tick of ticks(plot.scales.y, log.includes("y"))) svg.append(drawn("line", { x1: LEFT, x2: WIDTH - 20, y1: y(tick), y2: y(tick), stroke: colours.line }), text(words(tick), [LEFT - 6, y(tick) + 4], { "text-anchor": "end" }));
  svg.append(text(xLabel, [(LEFT + WIDTH) / 2, HEIGHT - 16], { "text-anchor": "middle" }), text(unit, [8, TOP - 8]));
  series.forEach((one, i) => {
    const colour = colours.series[one.colour];
    const seen = places.map((place, n) => n).filter(n => within(places[n]) && rows[i].values[n] != null);
    const path = (list, of) => list.map(n => `${x(places[n]).toFixed(1)},${y(of[n]).toFixed(1)}`);
    if (one.low && one.line !== false) svg.append(drawn("polygon", { points: [...path(seen, rows[i].high), ...path([...seen].reverse(), rows[i].low)].join(" "), fill: colour, "fill-opacity": 0.18 }));
    if (one.line !== false) svg.append(drawn("polyline", { points: path(seen, rows[i].values).join(" "), fill: "none", stroke: colour, "stroke-width": 2, "stroke-dasharray": one.dashes.join(" ") }));
    for (const n of one.mark ? seen : []) {
      if (one.low && one.line === false) svg.append(drawn("line", { x1: x(places[n]), x2: x(places[n]), y1: y(rows[i].low[n]), y2: y(rows[i].high[n]), stroke: colour }));
      svg.append(markOf(one.mark, x(places[n]), y(rows[i].values[n]), 5, colour));
    }
    svg.append(drawn("rect", { x: LEFT, y: HEIGHT + 22 * i - 8, width: 24, height: 4, fill: colour }), text(one.label, [LEFT + 32, HEIGHT + 22 * i]));
  });
  return new XMLSerializer().serializeToString(svg);
}
