// Form: what the bundle offers, the request that is filled in, and errors beside their fields.

import { byId, element, fillSelect } from "./elements.js";
import { MaskCanvas } from "./mask_canvas.js";
import { PictureField, watchPaste } from "./picture_field.js";
import { fieldsOf, randomSeed, seedOf } from "./request.js";
import { ControlRows, LoraRows, numberOf } from "./rows.js";

const DEFAULTS = ["width", "height", "steps", "guidance_scale", "sampler"];
// Numbers that the form always sends.
const NUMBERS = ["steps", "guidance_scale", "batch_size"];
// Fields that have no place of their own in the form, and the place that shows their errors.
const PLACES = {
  control: "controls",
  fit: "resize",
  hires_upscaler: "hires",
  hires_model: "hires",
  low: "controls",
  high: "controls",
  num_images_per_prompt: "batch_size",
};

export class Form {
  /** @param info what the server has. */
  constructor(info) {
    this.info = info;
    this.root = byId("form");
    const onError = (error) => (error ? this.showError(error, false) : this.clearErrors());
    this.image = new PictureField(
      byId("image-holder"), "Picture to start from", info.limits, (one) => this.#onPicture(one), onError,
    );
    this.depth = new PictureField(
      byId("depth-holder"), "Depth map", info.limits, () => {}, onError,
    );
    this.mask = new MaskCanvas();
    this.controls = new ControlRows(byId("controls"), byId("add-control"), info.limits, onError);
    this.loras = new LoraRows(byId("loras"), byId("add-lora"));
    watchPaste(() => {
      this.#part("picture").open = true;
      return this.image;
    });
    this.#offer();
    this.#listen();
    this.#useBundle();
  }

  get bundle() {
    return byId("bundle").value;
  }

  get previewEvery() {
    return Number(byId("preview_every").value);
  }

  #offer() {
    const { info } = this;
    const names = Object.keys(info.bundles);
    const labelled = (list) => list.map((name) => [name, info.labels[name] ?? name]);
    fillSelect(byId("bundle"), names, names[0]);
    byId("bundle-part").hidden = names.length < 2;
    fillSelect(byId("sampler"), labelled(info.samplers));
    fillSelect(byId("schedule"), [["", "the sampler's own"], ...labelled(info.schedules)]);
    byId("lora-names").append(...info.loras.map((value) => element("option", { value })));
    byId("loras-part").hidden = !info.loras.length;
    fillSelect(byId("model"), [["", "the bundle's own"], ...info.models]);
    byId("model-part").hidden = byId("model-words").hidden = !info.models.length;
    byId("batch_size").max = info.limits.max_images;
    byId("steps").max = info.limits.max_steps;
  }

  #useBundle() {
    const bundle = this.info.bundles[this.bundle];
    for (const name of DEFAULTS) byId(name).value = bundle.defaults[name];
    byId("schedule").value = bundle.defaults.schedule;
    const multiple = bundle.size_multiple ?? 8;
    for (const name of ["width", "height"]) byId(name).step = byId(name).min = multiple;
    const sides = new Set(bundle.resolutions.flat());
    byId("sizes").replaceChildren(...[...sides].map((value) => element("option", { value })));
    this.controls.offer(bundle, this.info);
    byId("controls-part").hidden = !bundle.controls.length;
    byId("depth-part").hidden = bundle.task !== "depth";
    const embeddings = bundle.embeddings.map((name) => [name, name]);
    fillSelect(byId("embeddings"), [["", "choose…"], ...embeddings], "");
    byId("embeddings-part").hidden = !embeddings.length;
    byId("about").textContent = `${bundle.model} · ${bundle.backend}, ${bundle.precision}`;
    this.#mark();
  }

  #listen() {
    byId("bundle").addEventListener("change", () => this.#useBundle());
    byId("sampler").addEventListener("change", () => (byId("schedule").value = ""));
    byId("seed").addEventListener("input", () => (byId("random").checked = byId("seed").value === ""));
    byId("random").addEventListener("change", (event) => {
      if (event.target.checked) byId("seed").value = "";
      else byId("seed").focus();
    });
    byId("strength").addEventListener("input", () => this.#showStrength());
    for (const id of ["with-mask", "fit", "inpaint_area"]) {
      byId(id).addEventListener("change", () => this.#showParts());
    }
    byId("embeddings").addEventListener("change", (event) => {
      const prompt = byId("prompt");
      const [start, end] = [prompt.selectionStart, prompt.selectionEnd];
      const before = prompt.value.slice(0, start);
      const text = `${before && !/\s$/.test(before) ? " " : ""}${event.target.value}`;
      prompt.setRangeText(text, start, end, "end");
      event.target.value = "";
      prompt.focus();
    });
    const [dialog, editor] = [byId("mask-dialog"), byId("mask-editor")];
    byId("mask-larger").addEventListener("click", () => {
      byId("mask-away").append(editor);
      byId("mask-larger").hidden = true;
      dialog.showModal();
      byId("mask-canvas").focus();
    });
    byId("mask-done").addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => {
      byId("mask-home").append(editor);
      byId("mask-larger").hidden = false;
      byId("mask-larger").focus();
    });
    this.root.addEventListener("input", () => this.#mark());
    this.root.addEventListener("click", () => this.#mark());
  }

  #part(name) {
    return this.root.querySelector(`details[data-part="${name}"]`);
  }

  #showStrength() {
    byId("strength-shown").textContent = Number(byId("strength").value).toFixed(2);
  }

  #onPicture(picture) {
    byId("with-mask").checked = false;
    if (picture) {
      byId("mask-picture").src = this.image.image.src;
      this.mask.load(picture);
      const fits = picture.width * picture.height <= this.info.limits.max_pixels;
      byId("fit").value = fits ? "own" : "crop";
    }
    this.#showParts();
    this.#mark();
  }

  #showParts() {
    const has = Boolean(this.image.picture);
    const masked = has && byId("with-mask").checked;
    byId("with-picture").hidden = !has;
    byId("mask-part").hidden = byId("with-mask-part").hidden = !masked;
    this.image.root.classList.toggle("masking", masked);
    const enlarges = masked && byId("inpaint_area").value === "masked";
    byId("fit").disabled = enlarges;
    for (const id of ["width", "height"]) {
      byId(id).disabled = has && byId("fit").value === "own" && !enlarges;
    }
    for (const id of ["hires", "hires_strength"]) byId(id).disabled = has;
    byId("hires-hint").hidden = !has;
  }

  /** Say on the closed parts that something is in them. */
  #mark() {
    const say = (id, text) => (byId(id).textContent = text);
    const picture = this.image.picture ?? this.depth.picture;
    say("picture-mark", picture ? (byId("with-mask").checked ? "with a mask" : "on") : "");
    say("controls-mark", this.controls.rows.length || "");
    say("loras-mark", this.loras.rows.length || "");
    const more = [byId("hires").value && !byId("hires").disabled, byId("model").value];
    say("more-mark", more.some(Boolean) ? "on" : "");
  }

  /** Return the request that is filled in; raises FieldError where something is missing. */
  async read() {
    const fields = [this.image, this.depth, ...this.controls.rows.map((row) => row.picture)];
    await Promise.all(fields.map((field) => field.settled()));
    const request = { prompt: byId("prompt").value };
    const negative = byId("negative_prompt").value;
    if (negative) request.negative_prompt = negative;
    for (const name of ["width", "height"]) {
      if (!byId(name).disabled) request[name] = numberOf(byId(name), name);
    }
    for (const name of NUMBERS) request[name] = numberOf(byId(name), name);
    for (const name of ["sampler", "schedule", "model"]) {
      if (byId(name).value) request[name] = byId(name).value;
    }
    request.seed = byId("random").checked ? randomSeed() : seedOf(byId("seed").value);
    await this.#readPictures(request);
    const controls = this.controls.read();
    if (controls.length) request.controls = controls;
    const loras = this.loras.read();
    if (Object.keys(loras).length) request.loras = loras;
    if (byId("hires").value && !byId("hires").disabled) {
      request.hires = Number(byId("hires").value);
      request.hires_strength = numberOf(byId("hires_strength"), "hires_strength");
    }
    return request;
  }

  async #readPictures(request) {
    if (this.depth.picture && !byId("depth-part").hidden) request.depth = this.depth.picture;
    if (!this.image.picture) return;
    request.image = this.image.picture;
    request.strength = numberOf(byId("strength"), "strength");
    if (!byId("fit").disabled && byId("fit").value !== "own") request.resize = byId("fit").value;
    if (!byId("with-mask").checked) return;
    request.mask = await this.mask.picture();
    request.mask_blur = numberOf(byId("mask_blur"), "mask_blur");
    request.inpaint_area = byId("inpaint_area").value;
  }

  /** Put a request into the form, as it was asked for. */
  async fill(request, bundle) {
    byId("bundle").value = bundle;
    this.#useBundle();
    const usual = { negative_prompt: "", schedule: "", model: "", hires: "", strength: 0.75 };
    const values = { ...usual, hires_strength: 0.7, mask_blur: 4, inpaint_area: "whole", ...request };
    for (const [name, value] of Object.entries(values)) {
      const input = byId(name);
      if (input && "value" in input && typeof value !== "object") input.value = String(value);
    }
    byId("random").checked = false;
    this.depth.set(request.depth ?? null);
    this.image.set(request.image ?? null);
    if (request.image) {
      byId("fit").value = request.resize ?? "own";
      byId("with-mask").checked = Boolean(request.mask);
      if (request.mask) await this.mask.load(request.image, request.mask);
    }
    this.loras.clear();
    for (const [name, strength] of Object.entries(request.loras ?? {})) this.loras.add(name, strength);
    for (const control of request.controls ?? []) this.controls.add(control);
    this.#showStrength();
    this.#showParts();
    this.#mark();
    this.clearErrors();
    byId("prompt").focus();
  }

  /** Start from a picture, or let a ControlNet read it. */
  use(picture, asControl = false) {
    const part = this.#part(asControl ? "controls" : "picture");
    part.open = true;
    if (asControl) this.controls.add({ image: picture });
    else this.image.set(picture);
    this.#mark();
    part.scrollIntoView({ block: "nearest" });
    part.querySelector("summary").focus();
  }

  /** Let the button offer the seed that was used last. */
  offerSeed(seed) {
    const button = byId("last-seed");
    button.disabled = false;
    button.onclick = () => {
      byId("seed").value = String(seed);
      byId("random").checked = false;
    };
  }

  clearErrors() {
    byId("form-error").textContent = "";
    for (const one of this.root.querySelectorAll(".field > .error")) one.remove();
    for (const one of this.root.querySelectorAll("[aria-invalid]")) {
      one.removeAttribute("aria-invalid");
      one.removeAttribute("aria-errormessage");
    }
  }

  /** Say what is wrong, beside the field that it is about if the form has it. */
  showError(error, focuses = true) {
    this.clearErrors();
    const names = fieldsOf(error).map((name) => PLACES[name] ?? name);
    const fields = names.map((name) => this.root.querySelector(`[data-field="${CSS.escape(name)}"]`));
    const field = fields.find((one) => one && !one.hidden);
    if (!field) {
      byId("form-error").textContent = error.message;
      return;
    }
    const message = wordsOf(error, field.dataset.field);
    const text = element("p", { className: "error", id: "field-error", role: "alert" }, message);
    field.append(text);
    for (let part = field.closest("details"); part; part = part.parentElement.closest("details")) {
      part.open = true;
    }
    const input = field.querySelector("textarea, select, input, canvas");
    input?.setAttribute("aria-invalid", "true");
    input?.setAttribute("aria-errormessage", text.id);
    if (focuses) input?.focus();
    text.scrollIntoView({ block: "nearest" });
  }
}

/** A message without the name of the field that it stands beside. */
function wordsOf(error, field) {
  const head = `${field}: `;
  if (!error.message.startsWith(head)) return error.message;
  const words = error.message.slice(head.length);
  return words[0].toUpperCase() + words.slice(1);
}
