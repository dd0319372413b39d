// The page that has the chat alone: it fills the window.
import { mount } from "./chat.js";

mount(document.querySelector("#chat"));
