// Parts of the theme whose names for screen readers are not what they show, or whose roles do not fit together.
document.addEventListener("DOMContentLoaded", () => {
  for (const part of document.querySelectorAll(".search-button-field, details > summary")) part.removeAttribute("aria-label");
  for (const list of document.querySelectorAll(".citation-list")) list.removeAttribute("role");
});

// ipywidgets gives the handles of its sliders no name, and wide outputs cannot be scrolled by keyboard: mend both.
function nameControls() {
  for (const handle of document.querySelectorAll(".noUi-handle:not([aria-label])")) {
    const label = handle.closest(".widget-slider, .widget-inline-hbox")?.querySelector(".widget-label");
    handle.setAttribute("aria-label", label?.textContent.trim() || "slider");
  }
  for (const output of document.querySelectorAll(".cell_output:not([tabindex])"))
    if (output.scrollWidth > output.clientWidth) output.tabIndex = 0;
}
document.addEventListener("DOMContentLoaded", () => {
  nameControls();
  new MutationObserver(nameControls).observe(document.body, { childList: true, subtree: true });
  window.addEventListener("resize", nameControls);
});
