// Native API of the server: calls with the user's token, errors in words, events of a job.

import { askForToken } from "./token_dialog.js";

const BASE = "/api/v1";
const STORED = "sdengine-token";
const TRIES = 5;

/** What the server refuses, in its words. */
export class ApiError extends Error {
  constructor(status, told = {}, retryAfter = 0) {
    super(told.message ?? `The server answered with the status ${status}.`);
    this.status = status;
    this.kind = told.type ?? "";
    this.field = told.field ?? "";
    this.retryAfter = retryAfter;
  }
}

let secret = stored();
let asking = null;

function stored() {
  try {
    return sessionStorage.getItem(STORED) ?? "";
  } catch {
    return ""; // storage is switched off: the token is kept as long as the page is open
  }
}

/** Whether the server asked for a token. */
export function hasToken() {
  return secret !== "";
}

async function newToken(message) {
  asking ??= askForToken(message).finally(() => (asking = null));
  secret = await asking;
  try {
    sessionStorage.setItem(STORED, secret);
  } catch {
    // as above
  }
}

/** Call the API; ask the user for a token where the server wants another one. */
export async function call(path, options = {}) {
  for (;;) {
    const used = secret;
    const headers = { ...options.headers };
    if (used) headers.Authorization = `Bearer ${used}`;
    if (options.body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(BASE + path, { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, { message: "The server does not answer. Is it still running?" });
    }
    if (response.ok) return response;
    if (response.status === 401) {
      if (used === secret) await newToken(used ? "The server does not know this token." : "");
      continue;
    }
    const told = await response.json().catch(() => ({}));
    throw new ApiError(response.status, told.error, Number(response.headers.get("Retry-After")));
  }
}

/** What the server has. */
export async function info() {
  return (await call("/info")).json();
}

/** Let a request wait for its turn; returns its job. */
export async function submit(body) {
  return (await call("/jobs", { method: "POST", body })).json();
}

/** Cancel a job, also while the page is being closed. */
export async function cancel(id) {
  return call(`/jobs/${encodeURIComponent(id)}`, { method: "DELETE", keepalive: true });
}

/** What a finished job says of itself, and its pictures' files. */
export async function resultOf(id) {
  const place = `/jobs/${encodeURIComponent(id)}`;
  const told = await (await call(`${place}/result?images=false`)).json();
  const files = told.seeds.map(async (_, number) => (await call(`${place}/images/${number}`)).blob());
  return { told, blobs: await Promise.all(files) };
}

/**
 * Tell what happens to a job until it is over.
 * @param onEvent called with the name of an event and its data.
 * @returns the data of the last event, `end`. A connection that breaks is made again.
 */
export async function watch(id, onEvent) {
  let failed = 0;
  for (;;) {
    try {
      const response = await call(`/jobs/${encodeURIComponent(id)}/events`);
      for await (const [name, data] of eventsOf(response.body)) {
        failed = 0;
        if (name === "end") return data;
        onEvent(name, data);
      }
      failed += 1;
    } catch (error) {
      failed += 1;
      if (error instanceof ApiError && error.status >= 400 && error.status < 500) throw error;
      if (failed >= TRIES) throw new ApiError(0, { message: "The connection to the server broke." });
    }
    if (failed >= TRIES) throw new ApiError(0, { message: "The connection to the server broke." });
    await new Promise((resolve) => setTimeout(resolve, 500 * failed));
  }
}

/** Yield the name and data of each server-sent event of a stream. */
export async function* eventsOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (left + value).split("\n\n");
      left = blocks.pop();
      for (const block of blocks) {
        const lines = block.split("\n").map((line) => /^(\w+): ?(.*)$/.exec(line)).filter(Boolean);
        const fields = Object.fromEntries(lines.map(([, name, text]) => [name, text]));
        if (fields.event) yield [fields.event, JSON.parse(fields.data)];
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
