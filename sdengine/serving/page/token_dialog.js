// Dialog that asks for a token of the server.

import { byId } from "./elements.js";

/** Ask for a token; returns it once one is given. */
export function askForToken(message) {
  const dialog = byId("token-dialog");
  const input = byId("token");
  byId("token-message").textContent = message || "This server asks for a token.";
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const again = (event) => event.preventDefault(); // without a token nothing works
    const given = (event) => {
      event.preventDefault();
      const text = input.value.trim();
      if (!text) return;
      dialog.removeEventListener("cancel", again);
      byId("token-form").removeEventListener("submit", given);
      dialog.close();
      resolve(text);
    };
    dialog.addEventListener("cancel", again);
    byId("token-form").addEventListener("submit", given);
  });
}
