// Generations: the ladder, the list, the lineage and the circle; one generation, or two side by side.
import { chart } from "./chart.js";
import { button, element, empty, facts, figure, fileLink, section, shown, table } from "./figures.js";
import { graph } from "./lineage.js";

const FIRST = 40;  // rows of a long table that are shown at first
const FACTS = 8;  // results of a room that are shown at first

export async function show(main, place, page) {
  if (place.name) return showOne(main, place, page);
  const all = await page.load("generations");
  if (all.empty) main.append(empty("There is no generation yet. Make one by", all.empty));
  main.append(...all.notes.map(note => element("p", { class: "bad" }, note)));
  ladder(main, all.ladder);
  if (all.next) main.append(section("The next generation (×10)", ...nextFacts(all.next)));
  if (all.generations.length) main.append(section("All generations", list(all.generations, page), compare(all.generations, page)));
  if (all.lineage.edges.length) main.append(section("Where they came from", graph(all.lineage, page)));
  if (all.rooms.length) main.append(section("The circle", circle(all.rooms)));
  main.append(section("The record of forecasts", ...record(all.record)));
  page.follow("generations", "", page.refresh);
}

/** The chart of the ladder of one or more generations: the law with its band, forecasts, outcomes and the next generation. */
function ladder(main, { unit, measured, forecasts, outcomes, law, arrow, note }) {
  const series = [];
  const add = (label, { flops, loss, low, high }, more) => { if (flops.length) series.push({ label, x: flops, values: loss, low: low?.length ? low : null, high: high?.length ? high : null, ...more }); };
  if (law) add(`law of ${law.name}, 80 % band`, law, { colour: 0, dash: 0 });
  if (arrow) add("next ×10", { flops: arrow.flops, loss: arrow.loss }, { mark: "triangle", colour: 3, dash: 1 });
  add("measured runs", measured, { line: false, mark: "dot", colour: 7 });
  add("forecast, 80 %", forecasts, { line: false, mark: "square", colour: 0 });
  add("outcome", outcomes, { line: false, mark: "star", colour: 1 });
  if (series.length) chart(main, { title: "The ladder: loss by compute", xLabel: "training compute (FLOPs)", unit, log: "x", series, tall: true });
  if (note) main.append(element("p", { class: "bad" }, note));
}

function nextFacts({ flops, time, energy, money, chance }) {
  const pays = chance?.probability ? element("span", {}, figure(chance.probability), element("small", {}, ` ${chance.probability.computed}, from `), chance.files.flatMap(file => [fileLink(file), " "]))
    : element("small", {}, chance?.missing ?? "This needs the law that `tenfold climb` writes.");
  return [facts([["compute", flops], ["time", time], ["energy", energy], ["money", money], ["chance that it pays", pays]])];
}

function list(generations, page) {
  const rows = generations.map(one => [element("a", { href: page.link("generations", one.name) }, one.name), one.state, one.flops, one.params, one.forecast, one.measured, one.inside, one.passed]);
  return long(["generation", "state", "compute", "parameters", "loss forecast (80 %)", "loss measured", "inside", "gate passed"], rows, "Generations, with forecasts and outcomes");
}

/** A table that shows its last rows at first, and all on request. */
function long(heads, rows, caption) {
  if (rows.length <= FIRST) return table(heads, rows, caption);
  const box = element("div", {}, table(heads, rows.slice(-FIRST), `${caption}: the last ${FIRST} of ${rows.length}`));
  box.append(button(`Show all ${rows.length}`, () => box.replaceChildren(table(heads, rows, caption))));
  return box;
}

/** Two lists of generations, and a button that shows the chosen ones side by side. */
function compare(generations, page) {
  if (generations.length < 2) return null;
  const choice = (label, chosen) => element("select", { "aria-label": label }, generations.map((one, i) => element("option", { value: one.name, selected: i === chosen }, one.name)));
  const [left, right] = [choice("Left generation", generations.length - 2), choice("Right generation", generations.length - 1)];
  return element("div", { class: "tools" }, left, " beside ", right, button("Compare", () => { location.hash = page.link("generations", left.value, { with: right.value }); }));
}

function circle(rooms) {
  return element("div", { class: "columns" }, rooms.map(room => element("section", {}, element("h3", {}, `${room.name} `, element("small", { class: room.state }, room.state)),
    room.why ? element("p", {}, room.why) : null, ...numbers(Object.entries(room.numbers).map(([key, value]) => [key.replaceAll("_", " "), value])),
    element("p", {}, ...room.files.flatMap(file => [fileLink(file), " "])))));
}

/** The first facts, and the others folded away. */
function numbers(pairs) {
  const rest = pairs.slice(FACTS);
  return [facts(pairs.slice(0, FACTS)), rest.length ? element("details", {}, element("summary", {}, `${rest.length} more`), facts(rest)) : null];
}

function record({ rows, came, held }) {
  if (!rows.length) return [empty("Nothing was forecast yet. A climb forecasts its run:", "tenfold climb")];
  const said = element("p", {}, `${held} of ${came} intervals of 80 % held; ${rows.length - came} of ${rows.length} forecasts have no outcome yet.`);
  return [said, long(["forecast", "median (80 %)", "interval widened by", "outcome", "inside", "made"], rows.map(one => [one.key, one.forecast, one.factor ?? "", one.measured, one.inside ?? "", one.made.slice(0, 16).replace("T", " ")]), "Forecasts and their outcomes")];
}

async function showOne(main, place, page) {
  const names = [place.name, ...(place.params.with ? [place.params.with] : [])];
  const found = await Promise.all(names.map(name => page.load("generations", name)));
  const columns = found.map(one => element("div", { class: "generation" }, names.length > 1 ? element("h2", {}, one.row.name) : null));
  main.append(element("div", { class: "columns" }, columns));
  found.forEach((one, i) => generation(columns[i], one, page));
  if (names.length > 1) main.querySelector("h1").textContent = names.join(" beside ");
  names.forEach(name => page.follow("generations", name, page.refresh));
}

function generation(main, one, page) {
  const run = one.files.some(file => file.endsWith("/run.jsonl"));
  const report = one.files.find(file => file.endsWith("/report.html"));
  main.append(facts([["state", one.row.state], ["compute", one.row.flops], ["parameters", one.row.params], ["tokens", one.row.tokens]]));
  main.append(element("p", { class: "tools" }, run && page.has("run") ? element("a", { href: page.link("run", one.row.name) }, "The run") : null, report ? fileLink(report, "The report") : null));
  ladder(main, one.ladder);
  if (one.quantities.length) main.append(section("Forecast and score", table(["quantity", "forecast (80 %)", "measured", "error", "inside"], one.quantities.map(q => [q.title, q.forecast, q.measured, q.error_pct, q.inside]), "Forecasts and their outcomes")));
  if (one.checks.length) main.append(section("The gate", element("p", {}, shown(one.reason)), table(["check", "passed", "measured", "limit", "says"], one.checks.map(check => [check.name, check.passed, check.measured, check.limit, check.said]), "Checks of the gate")));
  if (one.points.length) main.append(section("Points", table(["compute", "parameters", "tokens", "loss"], one.points.map(p => [p.flops, p.params, p.tokens, p.loss]), "Runs of the ladder")));
  if (one.lineage.edges.length) main.append(section("Where it came from", graph(one.lineage, page)));
  main.append(section("Files", element("ul", {}, one.files.map(file => element("li", {}, fileLink(file))))));
}
