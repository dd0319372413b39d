// Learning: tuned generations with the gate's verdicts, the training curve of one, release and rollback.
import { chart } from "./chart.js";
import { button, element, empty, facts, fileLink, section, table } from "./figures.js";

export async function show(main, place, page) {
  if (place.name) return showOne(main, place.name, page);
  const all = await page.load("learn");
  if (all.empty) main.append(empty("Nothing was learned from people yet. Tune a model:", all.empty));
  const known = new Set(all.generations.map(one => one.name));
  const linked = name => known.has(name) ? element("a", { href: page.link("learn", name) }, name) : name;
  for (const release of all.releases) main.append(section(release.folder ? "Ranker in service" : "In service", ...releaseOf(release, linked, page)));
  if (all.generations.length) main.append(section("Tuned generations", list(all.generations, linked)));
  page.follow("learn", "", () => page.refresh());
}

function releaseOf({ folder, in_service, before, candidate, share, since, files }, linked, page) {
  const rows = [["in service", linked(in_service)], ["before", before.length ? before.join(", ") : "–"]];
  if (candidate) rows.push(["on trial", linked(candidate)], ["share of users", share], ["since", new Date(since.value * 1000).toLocaleString()]);
  const back = candidate ? `End the trial of ${candidate}` : `Go back to ${before[0]}`;
  const tools = page.live && (candidate || before.length) ? [change(page, back, "learn/rollback", { folder })] : [];
  return [facts(rows), ...tools, element("p", {}, files.map(file => fileLink(file)))];
}

function list(generations, linked) {
  const rows = generations.map(one => [linked(one.name), one.state, one.passed, one.better, one.win_rate]);
  return table(["generation", "state", "gate passed", "difference to the old model (95 %)", "win rate (95 %)"], rows, "Tuned generations and the gate's verdicts");
}

async function showOne(main, name, page) {
  const { row, against, reason, checks, forecast, measured, files } = await page.load("learn", name);
  if (!checks.length) main.append(empty("The gate has not judged it yet:", `tenfold learn gate ${name} --against OLD`));
  else {
    main.append(element("p", {}, element("strong", {}, row.passed.value ? "The gate lets it pass. " : "The gate refuses it. "), reason));
    main.append(facts([["compared with", against], ["state", row.state || "not in service"], ["difference forecast (80 %)", forecast], ["difference measured (95 %)", measured]]));
    main.append(section("The gate", table(["check", "passed", "measured (95 %)", "limit", "result"], checks.map(one => [one.name, one.passed, one.measured, one.limit, one.says]), "The checks of the gate")));
  }
  if (page.live && row.passed?.value && row.state !== "in service") main.append(section("Release", release(name, page)));
  if (files.includes(`${name}/run.jsonl`)) await curve(main, name, page);
  main.append(section("Files", element("ul", {}, files.map(file => element("li", {}, fileLink(file))))));
}

/** The release of a generation for all users, or its trial with some of them. */
function release(name, page) {
  const share = element("input", { type: "number", min: 1, max: 100, value: 100, "aria-label": "Percent of the users" });
  const body = () => ({ name, share: share.valueAsNumber / 100 });
  return element("p", {}, element("label", {}, share, " % of the users "), change(page, `Put ${name} in service`, "learn/release", body));
}

/** A button that asks for confirmation, makes a change, and shows the result. */
function change(page, text, path, body) {
  const said = element("span", { role: "status" });
  const act = button(text, async () => {
    if (!confirm(`${text}?`)) return;
    act.disabled = true;
    said.textContent = " Under way…";
    try {
      const { in_service } = await page.act(path, typeof body === "function" ? body() : body);
      said.textContent = ` In service: ${in_service}.`;
      page.refresh();
    } catch (error) {
      said.textContent = ` ${error.message}`;
      act.disabled = false;
    }
  });
  return element("span", {}, act, said);
}

/** The chart of a run's losses, unless its record cannot be read. */
async function curve(main, name, page) {
  const run = await page.load("run", name).catch(() => null);
  const loss = run?.fields?.loss;
  if (!loss) return;
  const series = [{ label: "training loss", x: run.x, values: loss.mean, low: loss.low, high: loss.high, colour: 0 }];
  const { x, loss: seen } = run.evaluations;
  if (x.length) series.push({ label: "validation loss", x, values: seen, line: false, colour: 1, mark: "square" });
  main.append(section("Training", element("p", {}, element("a", { href: page.link("run", name) }, "The run with all its figures"))));
  chart(main, { title: `Training of ${name}`, xLabel: "step", unit: "loss", series });
}
