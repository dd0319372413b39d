// Files with a message: text is sent to the model as text, an image as an image if the model reads images.
import { make, sign } from "./dom.js";

const LONGEST_TEXT = 400_000;  // characters; the model's context may allow fewer
const LONGEST_SIDE = 1568;  // pixels; larger images are scaled down before they are sent

/** The files of the next message, and the button that adds files. `say` tells the user about a file that cannot be read. */
export class Attached {
  constructor(say) {
    Object.assign(this, { say, files: [], sees: true, reading: 0 });
    this.rows = make("ul", { className: "files", ariaLabel: "Files of this message", hidden: true });
    this.input = make("input", { type: "file", multiple: true, hidden: true, ariaLabel: "Files for the message", onchange: () => this.add([...this.input.files]) });
    this.button = sign("📎", "Add files", () => this.input.click());
  }

  /** Reads files, which were chosen, dropped or pasted, and shows them. */
  async add(files) {
    this.reading++;  // no message can be sent meanwhile
    for (const file of files) {
      try {
        this.files.push(await read(file, this.sees));
      } catch (error) {
        this.say(error.message);
      }
    }
    this.reading--;
    this.input.value = "";
    this.draw();
  }

  /** Returns the files for a message that is sent, and clears them. */
  take() {
    const taken = this.files;
    this.files = [];
    this.draw();
    return taken;
  }

  draw() {
    this.rows.hidden = !this.files.length;
    this.rows.replaceChildren(...this.files.map((file, i) => make("li", {}, shown(file),
      sign("×", `Remove ${file.name}`, () => { this.files.splice(i, 1); this.draw(); this.button.focus(); }))));
  }
}

/** Reads a file: its name with its `text`, or with its `image` as a data URL. Throws an Error of one sentence. */
async function read(file, sees) {
  if (file.type.startsWith("image/")) {
    if (!sees) throw new Error(`${file.name}: this model reads text alone, and sees no pictures.`);
    return { name: file.name, image: await picture(file) };
  }
  if (file.size > 4 * LONGEST_TEXT) throw new Error(`${file.name} is too long: give a part of it.`);
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    text = "\0";
  }
  if (text.includes("\0")) throw new Error(`${file.name} is no text in UTF-8, and no picture.`);
  if (text.length > LONGEST_TEXT) throw new Error(`${file.name} is too long: give a part of it.`);
  return { name: file.name, text };
}

/** An image as a data URL, encoded again: scaled down to LONGEST_SIDE, and without metadata such as the camera's location. */
async function picture(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is no picture that this browser can read.`);
  }
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = make("canvas", { width: Math.max(1, Math.round(scale * bitmap.width)), height: Math.max(1, Math.round(scale * bitmap.height)) });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL(file.type === "image/jpeg" ? "image/jpeg" : "image/png", .9);
}

/** The element that shows a file of a message. */
export function shown({ name, text, image }) {
  if (image) return make("img", { src: image, alt: name, title: name });
  return make("details", {}, make("summary", { textContent: name, dir: "auto" }), make("pre", { textContent: text, tabIndex: 0 }));
}
