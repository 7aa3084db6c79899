// Field of a picture: chosen, dropped, pasted, or taken from the gallery.

import { pictureFileOf } from "./clipboard.js";
import { element, fromTemplate } from "./elements.js";
import { FieldError, Picture } from "./request.js";

// The one that a paste goes to: that which was used last.
let current = null;

export class PictureField {
  /**
   * @param holder the element that it stands in.
   * @param label what it is for.
   * @param limits of the server.
   * @param onChange called with the picture, or null.
   * @param onError called with an error in words, or null once there is none.
   */
  constructor(holder, label, limits, onChange = () => {}, onError = () => {}) {
    this.limits = limits;
    this.onChange = onChange;
    this.onError = onError;
    this.picture = null;
    this.reading = null; // the promise of a picture that is being read
    this.failed = null; // the last that could not be
    this.root = fromTemplate("picture-template");
    [this.input] = this.root.getElementsByTagName("input");
    [this.image] = this.root.getElementsByTagName("img");
    this.input.setAttribute("aria-label", label);
    this.image.alt = label;
    this.remove = this.root.querySelector(".remove");
    this.remove.setAttribute("aria-label", `Remove: ${label}`);
    this.facts = this.root.querySelector(".facts");
    this.invite = this.root.querySelector(".invite");
    this.input.addEventListener("change", () => this.take(this.input.files[0]));
    this.remove.addEventListener("click", () => {
      this.set(null);
      this.input.focus();
    });
    this.root.addEventListener("focusin", () => (current = this));
    this.root.addEventListener("pointerdown", () => (current = this));
    for (const name of ["dragenter", "dragover"]) {
      this.root.addEventListener(name, () => this.root.classList.add("dropping"));
    }
    for (const name of ["dragleave", "drop"]) {
      this.root.addEventListener(name, () => this.root.classList.remove("dropping"));
    }
    this.root.addEventListener("drop", (event) => {
      event.preventDefault();
      event.stopPropagation();
      this.take(pictureFileOf(event.dataTransfer));
    });
    holder.append(this.root);
  }

  /** Take a file that was chosen, dropped or pasted; of two at once the later one. */
  async take(file) {
    this.input.value = "";
    if (!file) return;
    const reading = pictureOf(file, this.limits);
    this.reading = reading;
    const found = await reading.catch((error) => error);
    if (this.reading !== reading) return;
    this.reading = null;
    if (found instanceof Picture) return this.set(found);
    this.failed = reading;
    this.onError(found);
  }

  /** Wait until what was chosen is read; raises the error of what could not be. */
  async settled() {
    while (this.reading) {
      const reading = this.reading;
      const found = await reading.catch((error) => error);
      if (this.failed === reading) throw found;
    }
  }

  /** Show a picture, or none. */
  set(picture) {
    current = this;
    this.reading = null;
    if (this.image.src) URL.revokeObjectURL(this.image.src);
    this.picture = picture;
    this.image.hidden = this.remove.hidden = !picture;
    this.root.classList.toggle("has-picture", Boolean(picture));
    this.invite.textContent = picture ? "Choose another one" : "Choose a picture, drop or paste one";
    if (picture) {
      this.image.src = URL.createObjectURL(picture.blob);
      this.facts.textContent = `${picture.width} × ${picture.height} pixels`;
    } else {
      this.image.removeAttribute("src");
      this.facts.textContent = "";
    }
    this.onError(null);
    this.onChange(picture);
  }
}

/** Read a file as a picture that the server takes. */
export async function pictureOf(file, limits) {
  if (file.size * (4 / 3) > limits.max_body_bytes) {
    const most = Math.floor((limits.max_body_bytes * 0.75) / 2 ** 20);
    throw new FieldError("image", `The file is too large: the server takes ${most} MiB at most.`);
  }
  const url = URL.createObjectURL(file);
  const shown = element("img", { src: url });
  try {
    await shown.decode();
  } catch {
    throw new FieldError("image", "This is no picture that can be shown here. PNG, JPEG and WebP can.");
  } finally {
    URL.revokeObjectURL(url);
  }
  const { naturalWidth: width, naturalHeight: height } = shown;
  if (width * height > limits.max_picture_pixels) {
    const most = limits.max_picture_pixels.toLocaleString("en");
    throw new FieldError("image", `It has ${width} × ${height} pixels: the server takes ${most} at most.`);
  }
  return new Picture(file, width, height, file.name ?? "");
}

/**
 * Take what is pasted or dropped anywhere on the page.
 * @param fallback returns the field that takes it where none was used yet.
 */
export function watchPaste(fallback) {
  const takes = () => (current?.root.isConnected ? current : fallback());
  document.addEventListener("paste", (event) => {
    const file = pictureFileOf(event.clipboardData);
    if (!file) return;
    event.preventDefault();
    takes().take(file);
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault(); // else the page would be left for the file
    const file = pictureFileOf(event.dataTransfer);
    if (file) fallback().take(file);
  });
}
