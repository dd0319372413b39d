// The page that contains only the chat, which fills the window.
import { mount } from "./chat.js";

mount(document.querySelector("#chat"));
