// Clipboard: texts go there, by the old way where a page without HTTPS may not use the new one.

/** Copy the text of a textarea; returns whether it was. */
export async function copyTextOf(area) {
  try {
    await navigator.clipboard.writeText(area.value);
    return true;
  } catch {
    area.focus();
    area.select();
    return document.execCommand("copy");
  }
}

/** The first picture among the files of a paste or a drop. */
export function pictureFileOf(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/"));
}
