// Sites: what to begin this quarter, what waits for which news, costs and values, and the years ahead.
import { chart, stacked } from "./chart.js";
import { picture } from "./drawing.js";
import { element, empty, facts, fileLink, section, table, words } from "./figures.js";
import { drawn } from "./marks.js";
import { ticks } from "./svg.js";

const [WIDE, HIGH, LEFT, FOOT] = [860, 360, 70, 44];  // of the tree: its size, and the space for its axes
const YEARS = ["demand", "rented", "short", "IT power", "paid", "electricity", "water on site", "carbon"];

export async function show(main, place, page) {
  const found = await page.load("sites", place.name);
  if (found.empty) return void main.append(empty("No sites were planned yet. Plan them by", found.empty));
  const others = found.all.length > 1 ? element("p", {}, "Answers: ", found.all.flatMap(name => [element("a", { href: page.link("sites", name) }, name), " "])) : "";
  main.append(others, element("p", { class: "sentence" }, found.sentence), found.ladder ? element("p", {}, found.ladder) : "", now(found), later(found), worth(found));
  years(main, found);
  main.append(limits(found), money(found), asked(found), element("p", {}, found.files.flatMap(file => [fileLink(file), " "])));
  page.follow("sites", place.name, () => page.refresh());
}

function now({ begin_now: rows }) {
  const told = rows.length ? table(["what", "site", "power", "costs", "waiting costs"], rows.map(one => [one.what, one.site, one.mw, one.usd, one.waiting_usd]), "To begin this quarter") : element("p", {}, "Nothing.");
  return section("What this quarter commits", told);
}

function later({ later: rows }) {
  return rows.length ? section("What waits", table(["what", "site", "first in quarter", "share of futures", "if"], rows.map(one => [one.what, one.site, one.first_quarter, one.probability, one.if]), "To begin later")) : "";
}

const worth = found => section("Costs and values", facts([...found.worth.map(({ name, figure }) => [name, figure]), ["gap of the solution", found.gap]]));

/** The futures of demand as a tree, and the sites' power as stacked areas. */
function years(main, found) {
  const part = section("The years", tree(found.tree));
  main.append(part);
  const { quarters, sites } = found.power;
  const x = quarters.slice(0, -1).flatMap((quarter, i) => [quarter, quarters[i + 1] - 1e-6]);
  chart(part, { title: "Expected IT power by site", xLabel: "quarter", unit: "MW", x, series: stacked(sites.map(one => ({ label: one.name, amounts: one.mw.flatMap(mw => [mw, mw]) }))) });
  part.append(table(["quarter", ...YEARS], found.years.map(row => [row.quarter, ...row.figures]), "Expected, by stage"));
}

/** The demand in every future as a line on a logarithmic scale; more probable ones are wider. */
function tree(branches) {
  const [hours, quarters] = [branches.flatMap(one => one.hours), branches.flatMap(one => one.quarters)];
  const [least, most, end] = [Math.min(...hours), Math.max(...hours), Math.max(...quarters)];
  const x = quarter => LEFT + (WIDE - LEFT) * quarter / end;
  const y = value => HIGH - FOOT - (HIGH - FOOT - 10) * Math.log(value / least) / (Math.log(most / least) || 1);
  const svg = drawn("svg", { viewBox: `0 0 ${WIDE + 10} ${HIGH}`, width: WIDE + 10, height: HIGH, role: "img", class: "tree", "aria-label": `Demand from ${words(least)} to ${words(most)} million hours a year in ${branches.length} futures` });
  for (const tick of ticks({ min: least, max: most }, true)) svg.append(drawn("line", { x1: LEFT, x2: WIDE, y1: y(tick), y2: y(tick), class: "grid" }), drawn("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, words(tick)));
  for (const quarter of new Set(quarters)) svg.append(drawn("text", { x: x(quarter), y: HIGH - 22, "text-anchor": "middle" }, String(quarter)));
  svg.append(drawn("text", { x: (LEFT + WIDE) / 2, y: HIGH - 4, "text-anchor": "middle" }, "quarter"));
  for (const one of branches) {
    const points = one.quarters.map((quarter, i) => `${x(quarter).toFixed(1)},${y(one.hours[i]).toFixed(1)}`).join(" ");
    svg.append(drawn("polyline", { points, class: "branch c0", "stroke-width": (0.5 + 4 * one.probability).toFixed(2) }));
  }
  const rows = branches.map(one => [one.name, one.probability, one.quarters[1], one.hours[1]]);
  return picture("Demand in each future, million hours a year (wider lines are more probable)", svg, [["future", "probability", "quarter", "million h/year"], ...rows]);
}

function limits({ binds }) {
  return section("Limits that bind", binds.length ? table(["limit", "first in quarter", "share of futures"], binds.map(one => [one.limit, one.first_quarter, one.probability]), "Limits that are reached") : element("p", {}, "None."));
}

/** Scenarios of revenue, and decisions on historical data, where the file has them. */
function money({ pay, hour, history }) {
  const scenarios = () => table(["revenue", "present value", "probability that it pays", "paid back in quarter", "cash needed", "cash lasts"], pay.map(one => [one.revenue, one.value_usd, one.pays_probability, one.payback_quarter, one.cash_needed_usd, one.runway_months]), "Scenarios of revenue");
  const decided = () => table(["decided at the end of", "policy", "cost", "not served"], history.map(one => [one.decided, one.policy, one.usd, one.short_share]), "Decisions with what was known then");
  return element("div", {}, pay.length ? section("Does it pay?", scenarios(), facts([["an hour on own machines", hour.own], ["an hour rented", hour.rented]])) : "", history.length ? section("On historical data", decided()) : "");
}

function asked({ what_if: sentences, backtest }) {
  const tests = table(["policy", "mean cost", "worst twentieth", "over staged", "standard error", "demand not served"], backtest.map(one => [one.policy, one.mean_usd, one.cvar95_usd, one.over_staged_usd, one.standard_error_usd, one.short_share]), "On sampled futures");
  return element("div", {}, sentences.length ? section("What if", element("ul", {}, sentences.map(one => element("li", {}, one)))) : "", backtest.length ? section("Back-test", tests) : "");
}
