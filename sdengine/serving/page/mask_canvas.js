// Mask over a picture, painted by mouse, pen, finger or keys: what is painted may change.

import { byId } from "./elements.js";
import { FieldError, Picture } from "./request.js";

const STRIPES = ["#d6246e", "#ffe9f2"]; // seen on any picture; the mask itself is black and white
const MOST_STEPS = 200; // that can be undone
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class MaskCanvas {
  constructor() {
    this.canvas = byId("mask-canvas");
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.ring = byId("mask-ring");
    this.size = byId("brush-size");
    this.eraser = byId("brush-erase");
    this.base = null; // what the steps are painted on: a canvas, or null for nothing
    this.steps = [];
    this.stroke = null;
    this.cursor = [0, 0];
    this.#listen();
  }

  #listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !event.isPrimary) return;
      canvas.setPointerCapture(event.pointerId);
      this.#begin(this.#place(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      this.#showRing(this.#place(event));
      if (!this.stroke || !event.isPrimary) return;
      const passed = event.getCoalescedEvents?.() ?? [];
      for (const one of passed.length ? passed : [event]) this.#extend(this.#place(one));
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, () => this.#finish());
    }
    for (const name of ["pointerleave", "blur"]) {
      canvas.addEventListener(name, () => (this.ring.hidden = true));
    }
    canvas.addEventListener("focus", () => {
      if (canvas.matches(":focus-visible")) this.#showRing(this.cursor);
    });
    canvas.addEventListener("keydown", (event) => this.#onKey(event));
    canvas.addEventListener("keyup", (event) => {
      if (event.key === " ") this.#finish();
    });
    this.size.addEventListener("input", () => this.#showRing(this.cursor));
    byId("mask-undo").addEventListener("click", () => this.undo());
    byId("mask-clear").addEventListener("click", () => this.#do({ kind: "clear" }));
    byId("mask-invert").addEventListener("click", () => this.#do({ kind: "invert" }));
  }

  /** Begin anew over a picture, with what another mask has, if one is given. */
  async load(picture, mask = null) {
    this.steps = [];
    this.base = null;
    this.canvas.width = picture.width;
    this.canvas.height = picture.height;
    this.cursor = [picture.width / 2, picture.height / 2];
    const shorter = Math.min(picture.width, picture.height);
    this.size.max = String(Math.max(2, Math.round(shorter / 2)));
    this.size.value = String(Math.max(1, Math.round(shorter / 6)));
    this.ink = this.context.createPattern(stripes(Math.max(4, Math.round(shorter / 24))), "repeat");
    if (mask) this.base = await painted(mask, this.ink);
    this.#redraw();
  }

  /** Take the last step back. */
  undo() {
    this.steps.pop();
    this.#redraw();
  }

  /** The mask as a PNG picture: white may change. */
  async picture() {
    const { width, height } = this.canvas;
    const pixels = this.context.getImageData(0, 0, width, height);
    let count = 0;
    for (let at = 0; at < pixels.data.length; at += 4) {
      const isPainted = pixels.data[at + 3] >= 128;
      count += isPainted;
      pixels.data.fill(isPainted ? 255 : 0, at, at + 3);
      pixels.data[at + 3] = 255;
    }
    if (!count) {
      throw new FieldError("mask", "Nothing is painted. Paint what may change, or switch the mask off.");
    }
    const copy = new OffscreenCanvas(width, height);
    copy.getContext("2d").putImageData(pixels, 0, 0);
    return new Picture(await copy.convertToBlob({ type: "image/png" }), width, height, "mask.png");
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * this.canvas.width,
      ((event.clientY - box.top) / box.height) * this.canvas.height,
    ];
  }

  #begin(place) {
    const kind = this.eraser.checked ? "erase" : "paint";
    this.stroke = { kind, size: Number(this.size.value), places: [place] };
    this.#draw(this.stroke);
  }

  #extend(place) {
    const { places, kind, size } = this.stroke;
    this.#draw({ kind, size, places: [places.at(-1), place] });
    places.push(place);
  }

  #finish() {
    if (!this.stroke) return;
    const { stroke } = this;
    this.stroke = null;
    this.#keep(stroke);
  }

  #do(step) {
    this.#draw(step);
    this.#keep(step);
  }

  #keep(step) {
    this.steps.push(step);
    if (this.steps.length <= MOST_STEPS) return;
    const base = new OffscreenCanvas(this.canvas.width, this.canvas.height);
    const context = base.getContext("2d");
    if (this.base) context.drawImage(this.base, 0, 0);
    this.#draw(this.steps.shift(), context);
    this.base = base;
  }

  #redraw() {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (this.base) this.context.drawImage(this.base, 0, 0);
    for (const step of this.steps) this.#draw(step);
  }

  #draw(step, context = this.context) {
    const { width, height } = this.canvas;
    context.save();
    context.fillStyle = context.strokeStyle = this.ink;
    if (step.kind === "clear") {
      context.clearRect(0, 0, width, height);
    } else if (step.kind === "invert") {
      context.globalCompositeOperation = "xor";
      context.fillRect(0, 0, width, height);
    } else {
      context.globalCompositeOperation = step.kind === "erase" ? "destination-out" : "source-over";
      context.lineWidth = step.size;
      context.lineCap = context.lineJoin = "round";
      context.beginPath();
      context.moveTo(...step.places[0]);
      for (const place of step.places) context.lineTo(...place);
      context.stroke();
      context.beginPath(); // of a stroke that goes nowhere nothing is drawn
      context.arc(...step.places[0], step.size / 2, 0, 2 * Math.PI);
      context.fill();
    }
    context.restore();
  }

  #onKey(event) {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
      event.preventDefault();
      this.undo();
    } else if (event.key === " ") {
      event.preventDefault();
      if (!this.stroke) this.#begin(this.cursor);
    } else if (KEYS[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      const step = event.shiftKey ? 1 : Math.max(1, Number(this.size.value) / 4);
      const most = [this.canvas.width, this.canvas.height];
      this.cursor = this.cursor.map((at, i) => {
        return Math.min(Math.max(at + KEYS[event.key][i] * step, 0), most[i]);
      });
      if (this.stroke) this.#extend(this.cursor);
      this.#showRing(this.cursor);
    }
  }

  #showRing(place) {
    this.cursor = place;
    const box = this.canvas.getBoundingClientRect();
    const scale = box.width / this.canvas.width;
    const size = Number(this.size.value) * scale;
    this.ring.hidden = false;
    this.ring.style.width = this.ring.style.height = `${size}px`;
    this.ring.style.left = `${place[0] * scale - size / 2}px`;
    this.ring.style.top = `${place[1] * scale - size / 2}px`;
  }
}

/** A square of slanted stripes that goes on in its copies. */
function stripes(side) {
  const canvas = new OffscreenCanvas(side, side);
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(side, side);
  const colours = STRIPES.map((text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16)));
  for (let y = 0; y < side; y += 1) {
    for (let x = 0; x < side; x += 1) {
      const isFirst = (x + y) % side < 0.6 * side;
      pixels.data.set([...colours[isFirst ? 0 : 1], 255], 4 * (y * side + x));
    }
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** A canvas that is painted where a mask is white. */
async function painted(mask, ink) {
  const canvas = new OffscreenCanvas(mask.width, mask.height);
  const context = canvas.getContext("2d");
  context.drawImage(await createImageBitmap(mask.blob), 0, 0);
  const pixels = context.getImageData(0, 0, mask.width, mask.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    pixels.data[at + 3] = pixels.data[at] >= 128 ? 255 : 0;
  }
  context.putImageData(pixels, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = ink;
  context.fillRect(0, 0, mask.width, mask.height);
  return canvas;
}
