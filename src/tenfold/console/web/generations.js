// Generations: the ladder, the list, the lineage, the circle; one generation, and two side by side.
import { chart } from "./chart.js";
import { element, empty, facts, fileLink, section, table } from "./figures.js";
import { graph } from "./lineage.js";

export async function show(main, place, page) {
  if (place.name) return showOne(main, place, page);
  const all = await page.load("generations");
  if (all.empty) main.append(empty("There is no generation yet. Make one by", all.empty));
  ladder(main, all.ladder, all.next);
  if (all.next) main.append(section("The next times ten", nextFacts(all.next)));
  if (all.generations.length) main.append(section("All generations", list(all.generations, page)));
  if (all.lineage.edges.length) main.append(section("Where they came from", graph(all.lineage, page)));
  if (all.rooms.length) main.append(section("The circle", circle(all.rooms)));
  main.append(section("The record of forecasts", ...record(all.record)));
  page.follow("generations", "", () => page.refresh());
}

function ladder(main, { unit, measured, forecasts, outcomes, law, note }, next) {
  const series = [];
  if (measured.flops.length) series.push({ label: "measured runs", x: measured.flops, values: measured.loss, line: false, mark: "dot", colour: 7 });
  if (law) series.push({ label: `law of ${law.name}, 80 % band`, x: law.flops, values: law.loss, low: law.low, high: law.high, colour: 0, dash: 0 });
  if (forecasts.flops.length) series.push({ label: "forecast, 80 %", x: forecasts.flops, values: forecasts.loss, low: forecasts.low, high: forecasts.high, line: false, mark: "square", colour: 0 });
  if (outcomes.flops.length) series.push({ label: "outcome", x: outcomes.flops, values: outcomes.loss, line: false, mark: "star", colour: 1 });
  if (next?.arrow) series.push({ label: "next ×10", x: next.arrow.flops, values: next.arrow.loss, dash: 1, mark: "triangle", colour: 3 });
  if (series.length) chart(main, { title: "The ladder: loss by compute", xLabel: "training compute (FLOPs)", unit, log: "x", series, tall: true });
  if (note) main.append(element("p", { class: "bad" }, note));
}

const nextFacts = next => facts([["compute", next.flops], ["time", next.hours], ["energy", next.energy], ["money", next.money], ["chance that it pays", next.chance ?? element("code", {}, next.missing)]]);

function list(generations, page) {
  const rows = generations.map(one => [element("a", { href: page.link("generations", one.name) }, one.name), one.state, one.flops, one.params, one.forecast, one.measured, one.inside, one.passed]);
  return table(["generation", "state", "compute", "parameters", "loss forecast (80 %)", "loss measured", "inside", "gate passed"], rows, "Generations, with forecasts and outcomes");
}

function circle(rooms) {
  return element("div", { class: "columns" }, rooms.map(room => element("section", {}, element("h3", {}, `${room.name} `, element("small", {}, room.state)),
    room.why ? element("p", {}, room.why) : null, facts(Object.entries(room.numbers ?? {}).map(([key, value]) => [key.replaceAll("_", " "), value])),
    element("p", {}, ...(room.files ?? []).flatMap(file => [fileLink(file), " "])))));
}

function record({ rows, came, held }) {
  if (!rows.length) return [empty("Nothing was forecast yet. A climb forecasts its run:", "tenfold climb")];
  const said = element("p", {}, `${held} of ${came} intervals of 80 % held; ${rows.length - came} of ${rows.length} forecasts wait for their outcome.`);
  return [said, table(["forecast", "median (80 %)", "came", "inside", "made"], rows.map(one => [one.key, one.forecast, one.measured, one.inside ?? "", one.made]), "Forecasts as they were written down, and what came")];
}

async function showOne(main, place, page) {
  const found = await page.load("generations", place.name);
  main.append(facts([["compute", found.row.flops], ["parameters", found.row.params], ["tokens", found.row.tokens]]));
  ladder(main, found.ladder);
}
