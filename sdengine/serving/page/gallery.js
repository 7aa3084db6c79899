// Gallery of this visit's pictures: the newest first, the oldest forgotten.

import { byId, element } from "./elements.js";

const MOST = 100;

export class Gallery {
  /** @param onOpen called with an item that is to be shown large. */
  constructor(onOpen) {
    this.items = [];
    this.onOpen = onOpen;
  }

  /**
   * Add the pictures of a job.
   * @param request, bundle what was asked for.
   * @param told what the server said of the result.
   * @param blobs the pictures' files.
   */
  add(request, bundle, told, blobs) {
    const items = blobs.map((blob, index) => ({
      request,
      bundle,
      told,
      index,
      blob,
      url: URL.createObjectURL(blob),
      seed: request.seed + BigInt(index),
    }));
    for (const item of items) item.card = this.#card(item);
    this.items.unshift(...items);
    byId("gallery").prepend(...items.map((item) => item.card));
    for (const old of this.items.splice(MOST)) {
      URL.revokeObjectURL(old.url);
      old.card.remove();
    }
    byId("gallery-empty").hidden = true;
    byId("gallery-count").textContent = String(this.items.length);
    return items;
  }

  /** The item so many places after another one. */
  next(item, by) {
    const at = this.items.indexOf(item);
    return at < 0 ? undefined : this.items[at + by];
  }

  #card(item) {
    const image = element("img", { src: item.url, alt: item.request.prompt, decoding: "async" });
    const caption = element("span", { className: "quiet" }, String(item.seed));
    const button = element("button", { type: "button", title: item.request.prompt }, image, caption);
    button.setAttribute("aria-label", `Seed ${item.seed}: ${item.request.prompt}`);
    button.addEventListener("click", () => this.onOpen(item));
    return element("li", {}, button);
  }
}
