// Request as the page holds it: fields of the native API, with pictures as files and the seed as a
// BigInt, because seeds have 64 bits and numbers of JavaScript do not.

export const LARGEST_SEED = 2n ** 64n - 1n;

/** A picture's file, and its size as it is shown. */
export class Picture {
  constructor(blob, width, height, name) {
    this.blob = blob;
    this.width = width;
    this.height = height;
    this.name = name;
  }

  /** The ending that belongs to what the file is. */
  get ending() {
    const known = { "image/jpeg": "jpg", "image/webp": "webp", "image/bmp": "bmp", "image/gif": "gif" };
    return known[this.blob.type] ?? "png";
  }

  async base64() {
    const bytes = new Uint8Array(await this.blob.arrayBuffer());
    const pieces = [];
    for (let at = 0; at < bytes.length; at += 0x8000) {
      pieces.push(String.fromCharCode(...bytes.subarray(at, at + 0x8000)));
    }
    return btoa(pieces.join(""));
  }
}

/** What is wrong with one field, in words. */
export class FieldError extends Error {
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

/** Every picture of a request with the name of the file that copied texts call it by. */
export function picturesOf(request) {
  const found = [];
  for (const name of ["image", "mask", "depth"]) {
    if (request[name]) found.push([`${name}.${request[name].ending}`, request[name]]);
  }
  (request.controls ?? []).forEach((control, index) => {
    found.push([`control-${index + 1}.${control.image.ending}`, control.image]);
  });
  return found;
}

/** The JSON of a request; `textOf` gives what stands for a picture. */
export function jsonOf(request, textOf, space = "") {
  const replaced = (_, value) => (value instanceof Picture ? textOf(value) : value);
  const fields = Object.entries(request).map(([name, value]) => {
    const text = typeof value === "bigint" ? String(value) : JSON.stringify(value, replaced);
    return `${space}${JSON.stringify(name)}: ${text}`;
  });
  return space ? `{\n${fields.join(",\n")}\n}` : `{${fields.join(", ")}}`;
}

/** The body that lets a request wait for its turn. */
export async function bodyOf(request, bundle, previewEvery = 0) {
  const texts = new Map();
  for (const [, picture] of picturesOf(request)) texts.set(picture, await picture.base64());
  const json = jsonOf(request, (picture) => texts.get(picture));
  return `{"bundle": ${JSON.stringify(bundle)}, "preview_every": ${previewEvery}, "request": ${json}}`;
}

/** The request that makes image `index` of a batch alone. */
export function onlyImage(request, index) {
  return { ...request, seed: request.seed + BigInt(index), batch_size: 1 };
}

/** A random seed of 32 bits: what every other tool accepts. */
export function randomSeed() {
  return BigInt(crypto.getRandomValues(new Uint32Array(1))[0]);
}

/** Read a seed that was typed. */
export function seedOf(text) {
  const trimmed = text.trim();
  if (!/^[0-9]{1,20}$/.test(trimmed) || BigInt(trimmed) > LARGEST_SEED) {
    throw new FieldError("seed", `A seed is a whole number from 0 to ${LARGEST_SEED}.`);
  }
  return BigInt(trimmed);
}

/** The fields that an error is about: the one that the server names, or those its message begins with. */
export function fieldsOf(error) {
  if (error.field) return [error.field];
  const head = /^([a-z_][a-z0-9_.]*(?:, [a-z_][a-z0-9_.]*)*):/.exec(error.message ?? "");
  return head ? head[1].split(", ").map((name) => name.split(".")[0]) : [];
}
