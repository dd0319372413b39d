// The lineage as a graph from left to right: from which data, feedback and earlier generations each model was made.
import { element, fileLink, table } from "./figures.js";
import { drawn } from "./marks.js";

const [WIDTH, HEIGHT, ACROSS, DOWN] = [150, 44, 210, 60];  // size of a node, and distance from one to the next
const SHORT = 18;  // longest name in a node
const COLOURS = { generation: 0, data: 2, feedback: 1, model: 7 };

/** The graph of a lineage, and the same as a table. */
export function graph({ nodes, edges }, page) {
  const places = placed(nodes, edges);
  const columns = Math.max(...[...places.values()].map(([x]) => x)) + 1, rows = Math.max(...[...places.values()].map(([, y]) => y)) + 1;
  const [wide, high] = [columns * ACROSS - ACROSS + WIDTH + 4, rows * DOWN - DOWN + HEIGHT + 4];
  const svg = drawn("svg", { viewBox: `-2 -2 ${wide} ${high}`, width: wide, height: high, role: "group", "aria-label": "Lineage: arrows go from sources to what was made of them" });
  svg.append(drawn("defs", {}, drawn("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 8, refY: 4, markerWidth: 8, markerHeight: 8, orient: "auto" }, drawn("path", { d: "M0 0L8 4L0 8z", fill: "currentColor" }))));
  svg.append(...edges.map(edge => arrow(edge, places)), ...nodes.map(node => box(node, places.get(node.name), page)));
  const said = table(["source", "used for", "as", "file"], edges.map(edge => [edge.source, edge.target, edge.what, page.live ? fileLink(edge.file) : edge.file]), "Lineage");
  return element("div", {}, element("div", { class: "wide lineage", tabindex: 0, role: "group", "aria-label": "Lineage" }, svg), element("details", {}, element("summary", {}, "Lineage as a table"), said));
}

/** The column and row of each node: a node is one column after its last source. */
function placed(nodes, edges) {
  const into = Map.groupBy(edges, edge => edge.target);
  const depths = new Map();
  const depth = (name, above = new Set()) => {
    if (!depths.has(name) && !above.has(name)) {  // a cycle is cut here
      const before = (into.get(name) ?? []).map(edge => depth(edge.source, new Set([...above, name])));
      depths.set(name, 1 + Math.max(-1, ...before));
    }
    return depths.get(name) ?? 0;
  };
  const rows = [];
  return new Map(nodes.map(({ name }) => {
    const column = depth(name);
    rows[column] = (rows[column] ?? -1) + 1;
    return [name, [column, rows[column]]];
  }));
}

function arrow({ source, target, what }, places) {
  const [[a, b], [c, d]] = [places.get(source), places.get(target)];
  const [x0, y0, x1, y1] = [a * ACROSS + WIDTH, b * DOWN + HEIGHT / 2, c * ACROSS, d * DOWN + HEIGHT / 2];
  const path = drawn("path", { d: `M${x0} ${y0}C${x0 + 30} ${y0} ${x1 - 30} ${y1} ${x1} ${y1}`, class: "edge", "marker-end": "url(#arrow)" });
  path.append(drawn("title", {}, `${source} was used for ${target} as ${what}`));
  return path;
}

function box({ name, kind }, [column, row], page) {
  const [x, y] = [column * ACROSS, row * DOWN];
  const short = name.length > SHORT ? `…${name.slice(1 - SHORT)}` : name;
  const parts = [
    drawn("title", {}, `${kind} ${name}`),
    drawn("rect", { x, y, width: WIDTH, height: HEIGHT, rx: kind === "generation" ? 6 : 20, class: `node c${COLOURS[kind]}` }),
    drawn("text", { x: x + WIDTH / 2, y: y + 19, class: "name" }, short), drawn("text", { x: x + WIDTH / 2, y: y + 35, class: "kind" }, kind),
  ];
  return kind === "generation" ? drawn("a", { href: page.link("generations", name), "aria-label": `${kind} ${name}` }, ...parts) : drawn("g", {}, ...parts);
}
