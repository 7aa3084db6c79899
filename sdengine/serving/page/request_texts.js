// Texts of a request to copy: as a command of a shell, as Python, as calls of curl.

import { jsonOf, picturesOf } from "./request.js";

const LINE = 72;
const OPTIONS = {
  negative_prompt: "negative",
  guidance_scale: "guidance",
};

/**
 * A text as one word of a POSIX shell. What a terminal would obey when it is pasted (escape
 * sequences, carriage returns) is written as octal numbers.
 */
export function shellQuoted(text) {
  if (/^[A-Za-z0-9_@%+=:,./-]+$/.test(text)) return text;
  const pieces = text.split(/([\u0000-\u0008\u000b-\u001f\u007f-\u009f]+)/u);
  return pieces.map((piece, index) => (index % 2 ? octal(piece) : singly(piece))).join("") || "''";
}

function singly(text) {
  return text && `'${text.replaceAll("'", `'\\''`)}'`;
}

function octal(text) {
  const bytes = [...new TextEncoder().encode(text)];
  const written = bytes.map((byte) => `\\${byte.toString(8).padStart(3, "0")}`);
  return `"$(printf '${written.join("")}')"`;
}

/** A text as a string of Python, which reads what JSON writes. */
export function pythonString(text) {
  return JSON.stringify(text).replace(/[\u007f-\u009f\u2028\u2029]/gu, (character) => {
    return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  });
}

/**
 * The command that makes the same picture.
 * @param request the request, of one picture.
 * @param server what the server said of itself: bundle, precision, backend, fileNames.
 */
export function commandOf(request, server) {
  const { prompt, controls, loras, model, hires, ...rest } = withoutPictures(request);
  const files = fileNames(request);
  const words = [`--bundle=${server.bundle}`, `--precision=${server.precision}`];
  if (server.backend !== "native") words.push(`--backend=${server.backend}`);
  for (const name of ["image", "mask", "depth"]) {
    if (request[name]) words.push(`--${name}=${files.get(request[name])}`);
  }
  for (const [name, value] of Object.entries(rest)) {
    words.push(`--${(OPTIONS[name] ?? name).replaceAll("_", "-")}=${value}`);
  }
  if (hires !== undefined) words.push(`--hires=${hires}x`);
  if (model !== undefined) words.push(`--model=${fileOf(server, "models", model)}`);
  for (const [name, strength] of Object.entries(loras ?? {})) {
    words.push(`--lora=${fileOf(server, "loras", name)}:${strength}`);
  }
  for (const { network, image, ...options } of controls ?? []) {
    const keys = Object.entries(options).map(([key, value]) => `,${key}=${value}`);
    words.push(`--control=${network}=${files.get(image)}${keys.join("")}`);
  }
  const last = ["-o out.png", `-- ${shellQuoted(prompt)}`];
  const lines = broken(["sdengine generate", ...words.map(shellQuoted), ...last]);
  return [...remarks(request, server), lines.join(" \\\n    "), ""].join("\n");
}

/** Words in lines that are not too long. */
function broken(words) {
  const lines = [words[0]];
  for (const word of words.slice(1)) {
    const joined = `${lines.at(-1)} ${word}`;
    if (joined.length <= LINE) lines[lines.length - 1] = joined;
    else lines.push(word);
  }
  return lines;
}

/** The Python that makes the same picture; arguments as for `commandOf`. */
export function pythonOf(request, server) {
  const files = fileNames(request);
  const { prompt, controls, loras, model, ...rest } = withoutPictures(request);
  const lines = [pythonString(prompt)];
  for (const [name, value] of Object.entries(rest)) lines.push(`${name}=${pythonValue(value)}`);
  for (const name of ["image", "mask", "depth"]) {
    if (request[name]) lines.push(`${name}=${pythonString(files.get(request[name]))}`);
  }
  if (model !== undefined) lines.push(`model=${pythonString(fileOf(server, "models", model))}`);
  if (loras) {
    const items = Object.entries(loras).map(([name, strength]) => {
      return `${pythonString(fileOf(server, "loras", name))}: ${strength}`;
    });
    lines.push(`loras={${items.join(", ")}}`);
  }
  if (controls) {
    const items = controls.map(({ network, image, ...options }) => {
      const keys = Object.entries(options).map(([key, value]) => `, ${key}=${pythonValue(value)}`);
      return `sdengine.Control(${pythonString(network)}, ${pythonString(files.get(image))}${keys.join("")})`;
    });
    lines.push(`controls=[${items.join(", ")}]`);
  }
  const how = [pythonString(server.bundle), `precision=${pythonString(server.precision)}`];
  if (server.backend !== "native") how.push(`backend=${pythonString(server.backend)}`);
  return [
    ...remarks(request, server),
    "import sdengine",
    "",
    `with sdengine.load(${how.join(", ")}) as engine:`,
    "    result = engine.generate(",
    ...lines.map((line) => `        ${line},`),
    "    )",
    '    result.save("out.png")',
    "",
  ].join("\n");
}

/**
 * The calls of curl that let this server make the picture: submit, wait, fetch. A request with
 * pictures stands in a file of its own, `request.json`.
 * @param server also with origin, and hasToken where the server asks for one.
 */
export function curlOf(request, server) {
  const auth = server.hasToken ? ` -H "Authorization: Bearer $SDENGINE_TOKEN"` : "";
  const pictures = picturesOf(request).length > 0;
  const json = `{"bundle": ${JSON.stringify(server.bundle)}, "request": ${jsonOf(request, String)}}`;
  const data = pictures ? "@request.json" : shellQuoted(json);
  const lines = [
    ...(server.hasToken ? ["# SDENGINE_TOKEN: your token of this server"] : []),
    ...(pictures ? ["# request.json: the request with its pictures; save it from the page"] : []),
    `server=${shellQuoted(`${server.origin}/api/v1/jobs`)}`,
    `job=$(curl -sS${auth} -H 'Content-Type: application/json' \\`,
    `    -d ${data} "$server" | sed 's/.*"id": *"\\([^"]*\\)".*/\\1/')`,
    `curl -sSN${auth} "$server/$job/events?previews=false" > /dev/null  # ends with the job`,
    `curl -sS${auth} -o out.png "$server/$job/images/0"`,
    "",
  ];
  return lines.join("\n");
}

function withoutPictures(request) {
  const { image, mask, depth, batch_size, ...rest } = request;
  return rest;
}

function fileNames(request) {
  return new Map(picturesOf(request).map(([name, picture]) => [picture, name]));
}

function fileOf(server, kind, name) {
  const files = server.fileNames?.[kind] ?? {};
  return Object.hasOwn(files, name) ? files[name] : name;
}

function pythonValue(value) {
  if (typeof value === "string") return pythonString(value);
  if (typeof value === "boolean") return value ? "True" : "False";
  return String(value);
}

/** Lines of comment on what the text needs. No text of anybody stands in them: a name has lines too. */
function remarks(request, server) {
  const prompts = `${request.prompt}\n${request.negative_prompt ?? ""}`.toLowerCase();
  const lines = [];
  if (server.bundle !== "demo") lines.push("# the bundle is named as on the server: give its path");
  const files = request.loras || (request.model !== undefined && request.model !== "bundle");
  if (files) lines.push("# LoRAs and models are files of the server's folders: give their paths");
  if (picturesOf(request).length) lines.push("# the pictures are files beside this; save them from the page");
  if (/<(?:lora|hypernet|lyco):/.test(prompts)) {
    lines.push("# the prompt has tags: give the folders that they name files of, too");
  }
  if ((server.embeddings ?? []).some((name) => prompts.includes(name.toLowerCase()))) {
    lines.push("# the prompt may name an embedding: give the folder of the server's embeddings, too");
  }
  return lines;
}
