"use strict";

/* Views and settings that are shown one at a time, and a switch of the theme. */

const root = document.documentElement;
root.classList.add("js");

function stored(value) {
  /* A page from a file may have no storage. */
  try {
    if (value !== undefined) localStorage.setItem("sdengine-theme", value);
    return localStorage.getItem("sdengine-theme");
  } catch {
    return null;
  }
}

function setTheme(theme) {
  root.dataset.theme = theme;
}

function isDark() {
  if (root.dataset.theme) return root.dataset.theme === "dark";
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

const before = stored();
if (before === "dark" || before === "light") setTheme(before);

addEventListener("DOMContentLoaded", () => {
  const views = [...document.querySelectorAll(".view")];
  const links = [...document.querySelectorAll("nav a")];
  const blocks = [...document.querySelectorAll(".setting")];
  const choice = document.getElementById("choice");
  const select = document.getElementById("setting");
  const theme = document.getElementById("theme");

  /* The address is #view or #view/setting, so that what is seen can be sent to somebody. */
  function show() {
    const [name, number] = location.hash.slice(1).split("/");
    const view = views.find((one) => one.id === name) || views[0];
    if ([...select.options].some((option) => option.value === number)) select.value = number;
    for (const one of views) one.classList.toggle("shown", one === view);
    for (const link of links) {
      if (link.hash === `#${view.id}`) {
        link.setAttribute("aria-current", "page");
        link.parentElement.scrollLeft = link.offsetLeft - 40;
      } else link.removeAttribute("aria-current");
    }
    for (const block of blocks) block.classList.toggle("shown", block.dataset.setting === select.value);
    choice.hidden = !view.querySelector(".setting");
  }

  addEventListener("hashchange", () => {
    show();
    scrollTo(0, 0);
  });
  select.addEventListener("change", () => {
    const view = document.querySelector(".view.shown");
    history.replaceState(null, "", `#${view.id}/${select.value}`);
    show();
  });

  function label() {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", isDark() ? "Show it light" : "Show it dark");
  }
  theme.addEventListener("click", () => {
    setTheme(isDark() ? "light" : "dark");
    stored(root.dataset.theme);
    label();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);

  label();
  show();
});
