// What the page uses of other packages; `npm ci && npm run build` writes ../static/libraries.js and LICENSES.txt.
export { tasklist } from "@mdit/plugin-tasklist";
export { tex } from "@mdit/plugin-tex";
export { default as DOMPurify } from "dompurify";
export { createParser } from "eventsource-parser";
export { default as hljs } from "highlight.js/lib/common";
export { default as katex } from "katex";
export { default as MarkdownIt } from "markdown-it";
