// Feedback, for operators: what arrives and for which reasons, what the next training set would hold, and the present trial.
import { chart } from "./chart.js";
import { button, element, empty, facts, section, table, words } from "./figures.js";

const KINDS = { sft: "chats (SFT)", dpo: "preferences (DPO)", kto: "ratings (KTO)" };
const DAY = 86400, LOOK_MS = 5000;

export async function show(main, place, page) {
  const { source, arrived, trial, empty: command } = await page.load("feedback");
  if (command) return main.append(empty("No feedback is kept in this home. Serve a model that keeps it:", command));
  const arrivals = element("div");
  arrivedOf(arrivals, source, arrived);
  main.append(arrivals);
  if (trial) trialOf(main, trial);
  main.append(section("The next training set", nextSet(page)));
  const timer = setInterval(() => again(page, arrivals).catch(() => {}), LOOK_MS);  // a failed request is repeated at the next time
  page.leaving(() => clearInterval(timer));
}

/** Shows newly arrived feedback. The view is polled, since an EventSource cannot send the key that this view needs. */
async function again(page, box) {
  const { source, arrived } = await page.load("feedback"), text = JSON.stringify(arrived);
  if (text === box.dataset.shown) return;
  box.replaceChildren();
  arrivedOf(box, source, arrived);
}

function arrivedOf(main, source, arrived) {
  const { days, kinds, totals, users, reasons } = arrived;
  main.dataset.shown = JSON.stringify(arrived);
  main.append(facts([["users", users], ...Object.entries(totals)]), element("p", {}, `Counted in ${source}.`));
  if (days.length > 1) {
    const series = Object.entries(kinds).map(([label, values]) => ({ label, values, mark: "dot" }));
    chart(main, { title: "Feedback by day", x: days.map(day => day - days.at(-1)), xLabel: `days before ${new Date(days.at(-1) * DAY * 1000).toISOString().slice(0, 10)}`, unit: "a day", series });
  }
  if (reasons.length) main.append(section("Reasons", table(["reason", "how often"], reasons, "Reasons that were given with ratings")));
}

/** The table of the next training set for the chosen kind, made on request. */
function nextSet(page) {
  const kind = element("select", { "aria-label": "Kind of training" }, Object.entries(KINDS).map(([value, name]) => element("option", { value }, name)));
  const found = element("div", { role: "status" });
  const count = async () => {
    found.textContent = "Counting…";
    try {
      found.replaceChildren(...setOf(await page.ask("feedback/next", { kind: kind.value })));
    } catch (error) {
      found.textContent = error.message;
    }
  };
  return element("div", {}, element("p", {}, kind, " ", button("Count", count)), found);
}

function setOf({ rows, users, left_out, copies, personal, deleted_users_still_in }) {
  const parts = table(["part", "rows", "users"], Object.keys(rows).map(part => [part.replace("_", " "), rows[part], users[part]]), "The next set by part");
  const out = [...Object.entries(left_out), ["copies", copies]].map(([reason, count]) => [reason, count]);
  const scrubbed = Object.entries(personal).map(([kind, count]) => `${words(count)} of ${kind}`).join(", ") || "none";
  return [parts, table(["left out", "rows"], out, "Feedback that is in no part, by reason"),
    facts([["personal data scrubbed", scrubbed], ["deleted users whose rows earlier sets hold", deleted_users_still_in]])];
}

function trialOf(main, { candidate, released, candidate_path, released_path, share, wins, losses, p, verdict, course }) {
  const arm = (name, path, { users, liked, liked_interval: [low, high] }) => [`${name}: ${path.split("/").at(-1)}`, users, `${words(liked)} [${words(low)} to ${words(high)}]`];
  main.append(section("The trial", element("p", {}, `The candidate is ${verdict} (always-valid p ${words(p)}) and has ${words(100 * share)} % of the users.`),
    table(["model", "users", "liked (95 %)"], [arm("candidate", candidate_path, candidate), arm("in service", released_path, released)], "Both models of the trial"),
    facts([["wins of the candidate", wins], ["losses", losses]])));
  const x = course.map(look => look.wins + look.losses);
  chart(main, { title: "The candidate's share of wins, with always-valid 95 % bounds", x, xLabel: "pairs that differ", unit: "share", series: [
    { label: "share of wins", values: course.map(look => look.wins + look.losses ? look.wins / (look.wins + look.losses) : .5), low: course.map(look => look.low), high: course.map(look => look.high), colour: 0 },
    { label: "neither is better", values: x.map(() => .5), colour: 7, dash: 1 }] });
}
