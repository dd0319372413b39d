import { element } from "./figures.js";
export const graph = lineage => element("p", {}, lineage.edges.map(e => `${e.source} → ${e.target}`).join(", "));
