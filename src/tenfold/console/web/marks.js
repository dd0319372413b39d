// The marks of charts, on a canvas and as SVG, so that series differ in more than their colour.

const SVG = "http://www.w3.org/2000/svg";

/** Creates an SVG element. */
export function drawn(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** The corners of a mark with this radius around (x, y); a dot has none. */
export function corners(mark, x, y, radius) {
  const turn = (count, far) => Array.from({ length: count }, (_, i) => {
    const angle = 2 * Math.PI * i / count - Math.PI / 2;
    return [x + far(i) * Math.cos(angle), y + far(i) * Math.sin(angle)];
  });
  if (mark === "star") return turn(10, i => i % 2 ? radius * 0.75 : radius * 1.9);
  if (mark === "triangle") return turn(3, () => radius * 1.5);
  if (mark === "square") return [[x - radius, y - radius], [x + radius, y - radius], [x + radius, y + radius], [x - radius, y + radius]];
  return [];
}

/** Draws a mark on a canvas in its present colour; a square is hollow. */
export function drawMark(context, mark, x, y, radius) {
  context.beginPath();
  if (mark === "dot") context.arc(x, y, radius * 0.8, 0, 2 * Math.PI);
  corners(mark, x, y, radius).forEach(([a, b]) => context.lineTo(a, b));
  context.closePath();
  if (mark === "square") context.stroke(); else context.fill();
}

/** The mark as an SVG element. */
export function markOf(mark, x, y, radius, colour) {
  const paint = mark === "square" ? { fill: "none", stroke: colour, "stroke-width": 1.5 } : { fill: colour };
  if (mark === "dot") return drawn("circle", { cx: x, cy: y, r: radius * 0.8, ...paint });
  return drawn("polygon", { points: corners(mark, x, y, radius).map(at => at.map(n => n.toFixed(1)).join(",")).join(" "), ...paint });
}

/** The line and mark of a series, for a legend. */
export function outline(one) {
  const made = drawn("svg", { viewBox: "0 0 36 14", class: `c${one.colour}`, "aria-hidden": "true" });
  if (one.line !== false) made.append(drawn("line", { x1: 0, x2: 36, y1: 7, y2: 7, stroke: "currentColor", "stroke-width": 2, "stroke-dasharray": one.dashes.join(" ") }));
  if (one.mark) made.append(markOf(one.mark, 18, 7, 4, "currentColor"));
  return made;
}
