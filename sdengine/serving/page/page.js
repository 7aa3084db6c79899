// Page: the form, the jobs on their way and the gallery, brought together.

import * as api from "./api.js";
import { byId } from "./elements.js";
import { Form } from "./form.js";
import { Gallery } from "./gallery.js";
import { LargeView } from "./large_view.js";
import { Progress, speak } from "./progress.js";
import { FieldError, bodyOf } from "./request.js";

const info = await askInfo();
const form = new Form(info);
const progress = new Progress((entry) => entry.job && cancel(entry));
const gallery = new Gallery((item) => large.open(item));
const large = new LargeView({
  run,
  fill: (request, bundle) => form.fill(request, bundle),
  use: (picture, asControl) => form.use(picture, asControl),
  next: (item, by) => gallery.next(item, by),
  hasControls: () => info.bundles[form.bundle].controls.length > 0,
  serverOf,
});

async function askInfo() {
  try {
    return await api.info();
  } catch (error) {
    byId("form-error").textContent = `${error.message} Load the page again to try again.`;
    byId("generate").disabled = true;
    throw error;
  }
}

function serverOf(item) {
  const { precision, backend, embeddings } = info.bundles[item.bundle];
  return {
    bundle: item.bundle,
    precision,
    backend,
    embeddings,
    fileNames: info.file_names,
    origin: location.origin,
    hasToken: api.hasToken(),
  };
}

async function generate() {
  try {
    form.clearErrors();
    const request = await form.read();
    run(request, form.bundle);
  } catch (error) {
    form.showError(error);
  }
}

/** Let a request be made, and show it from here to the gallery. */
async function run(request, bundle) {
  const entry = progress.add(request, bundle);
  if (matchMedia("(max-width: 60rem)").matches) byId("stage").scrollIntoView({ block: "start" });
  try {
    const body = await bodyOf(request, bundle, form.previewEvery);
    if (body.length > info.limits.max_body_bytes) {
      throw new FieldError("image", "The pictures are too large together for this server.");
    }
    progress.update(entry, await api.submit(body));
    form.offerSeed(request.seed);
    if (entry.isCancelled) cancel(entry);
    const end = await api.watch(entry.job.id, (name, data) => {
      if (name === "status") progress.update(entry, data);
      if (name === "preview") progress.preview(entry, data.image);
    });
    await finish(entry, end);
  } catch (error) {
    progress.remove(entry);
    form.showError(error);
  }
}

async function finish(entry, end) {
  if (end.status === "completed") {
    const { told, blobs } = await api.resultOf(end.id);
    const items = gallery.add(entry.request, entry.bundle, told, blobs);
    progress.remove(entry);
    progress.finished(items, (item) => large.open(item));
    const warned = told.warnings.length ? `, with ${told.warnings.length} warnings` : "";
    speak(`${items.length === 1 ? "The picture is" : `${items.length} pictures are`} there${warned}.`);
    return;
  }
  progress.remove(entry);
  if (end.error) form.showError(end.error);
  else speak("Cancelled.");
}

async function cancel(entry) {
  try {
    await api.cancel(entry.job.id);
  } catch (error) {
    if (error.status !== 404) form.showError(error, false);
  }
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    generate();
  } else if (event.key === "Escape" && progress.cancel()) {
    event.preventDefault();
  }
});
addEventListener("pagehide", (event) => {
  if (event.persisted) return;
  for (const entry of progress.entries) {
    if (entry.job) api.cancel(entry.job.id).catch(() => {}); // nobody would see its pictures
  }
});
byId("form").dataset.ready = "yes";
byId("prompt").focus({ preventScroll: true });
