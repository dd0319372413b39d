// Files beside a message: text goes to the model as text, a picture as a picture where the model sees them.
import { make, sign } from "./dom.js";

const LONGEST_TEXT = 400_000;  // characters; what a model reads of them its context decides
const LONGEST_SIDE = 1568;  // pixels of a picture: what is larger is made smaller before it is sent

/** The chosen files of the next message, with the button that adds some. `say` tells the user of one that cannot be read. */
export class Attached {
  constructor(say) {
    Object.assign(this, { say, files: [], sees: true, reading: 0 });
    this.rows = make("ul", { className: "files", ariaLabel: "Files of this message", hidden: true });
    this.input = make("input", { type: "file", multiple: true, hidden: true, ariaLabel: "Files for the message", onchange: () => this.add([...this.input.files]) });
    this.button = sign("📎", "Add files", () => this.input.click());
  }

  /** Reads files and shows them; also those that were dropped, or pasted. */
  async add(files) {
    this.reading++;  // meanwhile no message is sent
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

  /** The files, which a message takes with it. */
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

/** A file as it is kept: its name with its `text`, or with its `image` as a data URL. Throws an Error of one sentence. */
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

/** A picture drawn anew: no larger than models look at, and without what the camera wrote beside it, such as the place. */
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

/** A file of a message, to be seen. */
export function shown({ name, text, image }) {
  if (image) return make("img", { src: image, alt: name, title: name });
  return make("details", {}, make("summary", { textContent: name, dir: "auto" }), make("pre", { textContent: text, tabIndex: 0 }));
}
