// Rows that there may be any number of: ControlNets with their pictures, LoRAs with strengths.

import { element, fillSelect, fromTemplate, joinLabels } from "./elements.js";
import { PictureField } from "./picture_field.js";
import { FieldError } from "./request.js";

class Rows {
  /**
   * @param list the element that rows stand in.
   * @param button that adds one; it gets the focus back when one is removed.
   */
  constructor(list, button, template) {
    this.list = list;
    this.button = button;
    this.template = template;
    this.rows = [];
    button.addEventListener("click", () => {
      const row = this.add();
      row.root.querySelector("select, input").focus();
    });
  }

  make() {
    const root = fromTemplate(this.template);
    joinLabels(root);
    const row = { root, input: (name) => root.querySelector(`[name="${name}"]`) };
    root.querySelector(".remove-row").addEventListener("click", () => {
      this.#remove(row);
      this.button.focus();
    });
    this.rows.push(row);
    this.list.append(root);
    return row;
  }

  clear() {
    for (const row of [...this.rows]) this.#remove(row);
  }

  #remove(row) {
    row.picture?.set(null);
    row.root.remove();
    this.rows = this.rows.filter((one) => one !== row);
  }
}

export class ControlRows extends Rows {
  constructor(list, button, limits, onError) {
    super(list, button, "control-template");
    this.limits = limits;
    this.onError = onError;
    this.server = { controls: [], control_kinds: {} };
  }

  /** Take over what a bundle has; rows of another bundle's networks go. */
  offer(bundle, info) {
    this.clear();
    this.server = { ...info, ...bundle };
  }

  add(control = {}) {
    const row = this.make();
    const { controls, preprocessors, control_types: types, control_kinds: kinds } = this.server;
    fillSelect(row.input("network"), controls, control.network ?? controls[0]);
    fillSelect(row.input("preprocess"), preprocessors, control.preprocess ?? "none");
    fillSelect(row.input("control_type"), [["", "choose"], ...types], control.control_type ?? "");
    for (const name of ["scale", "start", "end"]) {
      if (control[name] !== undefined) row.input(name).value = control[name];
    }
    row.picture = new PictureField(
      row.root.querySelector(".picture-holder"), "Picture of the ControlNet", this.limits,
      () => {}, (error) => this.onError(error),
    );
    if (control.image) row.picture.set(control.image);
    const showType = () => {
      const isUnion = kinds[row.input("network").value] === "controlnet_union";
      row.root.querySelector(".control-type").hidden = !isUnion;
      if (!isUnion) row.input("control_type").value = "";
    };
    row.input("network").addEventListener("change", showType);
    showType();
    return row;
  }

  read() {
    return this.rows.map((row) => {
      const usual = { scale: 1, start: 0, end: 1 };
      const found = { network: row.input("network").value, image: row.picture.picture };
      if (!found.image) throw new FieldError("controls", "A ControlNet needs a picture: give one, or remove it.");
      for (const name of ["preprocess", "control_type"]) {
        const { value } = row.input(name);
        if (value && value !== "none") found[name] = value;
      }
      for (const [name, value] of Object.entries(usual)) {
        const number = numberOf(row.input(name), "controls", name);
        if (number !== value) found[name] = number;
      }
      return found;
    });
  }
}

export class LoraRows extends Rows {
  constructor(list, button) {
    super(list, button, "lora-template");
  }

  add(name = "", strength = 1) {
    const row = this.make();
    row.input("lora").value = name;
    row.input("strength").value = strength;
    return row;
  }

  read() {
    // By name, whatever the name is: `__proto__` is one too.
    const found = Object.create(null);
    for (const row of this.rows) {
      const name = row.input("lora").value.trim();
      if (!name) throw new FieldError("loras", "Choose a LoRA, or remove the row.");
      if (name in found) throw new FieldError("loras", "One LoRA is there twice.");
      found[name] = numberOf(row.input("strength"), "loras", "strength");
    }
    return found;
  }
}

/** The number in an input. */
export function numberOf(input, field, name = field) {
  const number = input.value.trim() === "" ? NaN : Number(input.value);
  if (!Number.isFinite(number)) {
    throw new FieldError(field, `${name.replaceAll("_", " ")}: give a number.`);
  }
  return number;
}
