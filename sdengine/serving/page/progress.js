// Progress of jobs: the running one large with its preview, the others in their order.

import { byId, element, inWords } from "./elements.js";

const TITLE = "sdengine";
const SPOKEN = [0.25, 0.5, 0.75]; // parts of a job after which it is said how far it is

/** Tell users of screen readers. */
export function speak(text) {
  byId("said").textContent = text;
}

/** Warnings and notes of a result, as items of a list. */
export function noticesOf(told) {
  return [
    ...told.warnings.map((text) => element("li", {}, text)),
    ...told.notes.map((text) => element("li", { className: "note" }, text)),
  ];
}

export class Progress {
  /** @param onCancel called with the entry that is no longer wanted. */
  constructor(onCancel) {
    this.entries = [];
    this.onCancel = onCancel;
    byId("cancel").addEventListener("click", () => this.cancel());
  }

  /** Show a job that is being submitted. */
  add(request, bundle) {
    const entry = { request, bundle, job: null, preview: "", spoken: 0, isCancelled: false };
    entry.row = this.#row(entry);
    this.entries.push(entry);
    this.#show();
    return entry;
  }

  /** Take over what the server says of a job. */
  update(entry, job) {
    const before = entry.job?.status;
    entry.job = job;
    if (job.status !== before && entry === this.entries[0]) {
      speak(job.status === "queued" ? "Waiting" : "Generating");
    }
    const passed = SPOKEN.filter((part) => job.progress >= part).length;
    if (passed > entry.spoken && entry === this.entries[0]) speak(this.#text(entry));
    entry.spoken = passed;
    this.#show();
  }

  /** Show what a picture is about so far. */
  preview(entry, base64) {
    entry.preview = `data:image/png;base64,${base64}`;
    this.#show();
  }

  /** Forget a job that is over. */
  remove(entry) {
    this.entries = this.entries.filter((one) => one !== entry);
    entry.row.remove();
    this.#show();
  }

  /** Cancel the first job; returns whether there was one. */
  cancel(entry = this.entries[0]) {
    if (!entry || entry.isCancelled) return false;
    entry.isCancelled = true;
    this.#show();
    this.onCancel(entry);
    return true;
  }

  /** Show pictures that are made, with what opens each large. */
  finished(items, open) {
    const shown = items.map((item) => {
      const image = element("img", { src: item.url, alt: item.request.prompt });
      const button = element("button", { type: "button", title: "Open large" }, image);
      button.setAttribute("aria-label", `Open large: seed ${item.seed}`);
      button.addEventListener("click", () => open(item));
      return button;
    });
    byId("frame").replaceChildren(...shown);
    byId("frame").dataset.columns = shown.length === 1 ? "1" : shown.length <= 4 ? "2" : "4";
    byId("warnings").replaceChildren(...noticesOf(items[0].told));
  }

  #row(entry) {
    const button = element("button", { type: "button" }, "Cancel");
    button.addEventListener("click", () => this.cancel(entry));
    button.setAttribute("aria-label", `Cancel: ${entry.request.prompt.slice(0, 60)}`);
    const text = element("span", { className: "cut" }, entry.request.prompt || "(no prompt)");
    return element("li", { className: "line" }, text, element("span", { className: "quiet" }), button);
  }

  #show() {
    const [first, ...others] = this.entries;
    byId("running").hidden = !first;
    byId("frame").classList.toggle("busy", Boolean(first));
    if (first) this.#showFirst(first);
    else this.#showPreview("");
    for (const entry of others) {
      entry.row.children[1].textContent = this.#text(entry);
      entry.row.lastElementChild.disabled = entry.isCancelled;
    }
    byId("waiting").replaceChildren(...others.map((entry) => entry.row));
    const percent = Math.round(100 * (first?.job?.progress ?? 0));
    document.title = first ? `${percent} % ${TITLE}` : TITLE;
  }

  #showFirst(entry) {
    const bar = byId("bar");
    if (entry.job?.status === "generating") bar.value = entry.job.progress;
    else bar.value = 0;
    byId("progress-text").textContent = this.#text(entry);
    byId("cancel").disabled = entry.isCancelled;
    this.#showPreview(entry.preview, entry.request.prompt);
  }

  #showPreview(source, prompt = "") {
    const frame = byId("frame");
    let image = frame.querySelector("img.preview");
    if (!source) {
      image?.remove();
      return;
    }
    if (!image) {
      image = element("img", { className: "preview" });
      frame.append(image);
    }
    image.alt = `Preview: ${prompt}`;
    image.src = source;
  }

  #text(entry) {
    const { job } = entry;
    if (entry.isCancelled) return "Cancelling…";
    if (!job) return "Sending…";
    if (job.status === "queued") {
      const before = job.queue_position;
      return before ? `Waiting, ${before} before it` : "Waiting, next in turn";
    }
    if (!job.step) return "Starting…";
    const steps = `Step ${job.step} of ${job.total}`;
    if (job.step >= job.total) return `${steps}, decoding`;
    return job.eta_seconds === null ? steps : `${steps}, about ${inWords(job.eta_seconds)} left`;
  }
}
