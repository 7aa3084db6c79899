// Large view of a picture: its metadata, what can be done with it, texts to copy.

import { copyTextOf } from "./clipboard.js";
import { byId, element, save } from "./elements.js";
import { noticesOf } from "./progress.js";
import { Picture, bodyOf, onlyImage, picturesOf, randomSeed } from "./request.js";
import { commandOf, curlOf, pythonOf } from "./request_texts.js";

const TEXTS = { command: commandOf, python: pythonOf, curl: curlOf };
const STAGES = { unet: "U-Net", vae_decoder: "VAE decoder", vae_encoder: "VAE encoder" };

export class LargeView {
  /**
   * @param does what the buttons do: run(request, bundle), fill(request, bundle),
   *     use(picture, asControl), next(item, by), hasControls(), serverOf(item).
   */
  constructor(does) {
    this.does = does;
    this.dialog = byId("large");
    this.item = null;
    const on = (id, act) => byId(id).addEventListener("click", act);
    on("large-close", () => this.dialog.close());
    on("large-before", () => this.#go(-1));
    on("large-after", () => this.#go(1));
    on("again", () => this.#run(this.item.request));
    on("again-new", () => this.#run({ ...this.item.request, seed: randomSeed() }));
    on("into-form", () => {
      this.dialog.close();
      does.fill({ ...this.item.request, seed: this.item.seed, batch_size: 1 }, this.item.bundle);
    });
    on("use", () => this.#use(false));
    on("use-control", () => this.#use(true));
    on("download", () => save(this.item.blob, this.#fileName()));
    on("copy", async () => {
      const done = await copyTextOf(byId("copy-text"));
      byId("copied").textContent = done ? "Copied." : "Not allowed here: select the text and copy it.";
    });
    on("save-pictures", () => this.#saveFiles());
    for (const radio of this.dialog.querySelectorAll('[name="copy"]')) {
      radio.addEventListener("change", () => this.#showText());
    }
    this.dialog.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by && !event.target.closest("input, textarea, pre")) this.#go(by);
    });
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close(); // beside it
    });
  }

  /** Show a picture of the gallery. */
  open(item) {
    this.item = item;
    const { told, index, request } = item;
    byId("large-title").textContent = `Seed ${item.seed}`;
    byId("large-image").src = item.url;
    byId("large-image").alt = request.prompt;
    byId("parameters").textContent = told.parameters[index];
    byId("large-notices").replaceChildren(...noticesOf(told));
    this.#showTimings(told.timings);
    for (const [id, by] of [["large-before", -1], ["large-after", 1]]) {
      byId(id).disabled = !this.does.next(item, by);
    }
    byId("use-control").hidden = !this.does.hasControls();
    this.#showText();
    if (!this.dialog.open) this.dialog.showModal();
  }

  #go(by) {
    const next = this.does.next(this.item, by);
    if (next) this.open(next);
  }

  #run(request) {
    this.dialog.close();
    this.does.run(request, this.item.bundle);
  }

  async #use(asControl) {
    const { blob } = this.item;
    const image = byId("large-image");
    this.dialog.close();
    const picture = new Picture(blob, image.naturalWidth, image.naturalHeight, this.#fileName());
    this.does.use(picture, asControl);
  }

  #fileName() {
    return `sdengine-${this.item.seed}.png`;
  }

  #alone() {
    return onlyImage(this.item.request, this.item.index);
  }

  #kind() {
    return this.dialog.querySelector('[name="copy"]:checked').value;
  }

  #showText() {
    const server = this.does.serverOf(this.item);
    byId("copy-text").value = TEXTS[this.#kind()](this.#alone(), server);
    byId("save-pictures").hidden = !picturesOf(this.#alone()).length;
    byId("copied").textContent = "";
  }

  async #saveFiles() {
    const request = this.#alone();
    if (this.#kind() === "curl") {
      const body = await bodyOf(request, this.item.bundle);
      save(new Blob([body], { type: "application/json" }), "request.json");
      return;
    }
    for (const [name, picture] of picturesOf(request)) save(picture.blob, name);
  }

  #showTimings(timings) {
    const rows = Object.entries(timings)
      .filter(([name, ms]) => name.endsWith("_ms") && (ms > 0 || name === "total_ms"))
      .map(([name, ms]) => {
        const stage = name.slice(0, -3);
        const calls = timings[`${stage}_calls`];
        return element(
          "tr", {},
          element("th", { scope: "row" }, STAGES[stage] ?? stage.replaceAll("_", " ")),
          element("td", {}, `${ms.toFixed(1)} ms`),
          element("td", {}, calls > 1 ? `${calls} runs` : ""),
        );
      });
    byId("timings").tBodies[0].replaceChildren(...rows);
  }
}
