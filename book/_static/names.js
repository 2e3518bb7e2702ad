// Parts of the theme and of ipywidgets whose names for screen readers are absent or not what they show, or whose roles
// do not fit together; and wide outputs, which a keyboard could not scroll.
function nameSliders() {
  for (const handle of document.querySelectorAll(".noUi-handle:not([aria-label])")) {
    const label = handle.closest(".widget-slider, .widget-inline-hbox")?.querySelector(".widget-label");
    handle.setAttribute("aria-label", label?.textContent.trim() || "slider");
  }
}
function letWideOutputsScroll() {
  for (const output of document.querySelectorAll(".cell_output:not([tabindex])"))
    if (output.scrollWidth > output.clientWidth) output.tabIndex = 0;
}
document.addEventListener("DOMContentLoaded", () => {
  for (const part of document.querySelectorAll(".search-button-field, details > summary")) part.removeAttribute("aria-label");
  for (const list of document.querySelectorAll(".citation-list")) list.removeAttribute("role");
  letWideOutputsScroll();
  // Widgets are drawn after the page.
  if (document.querySelector('script[type="application/vnd.jupyter.widget-view+json"]'))
    new MutationObserver(nameSliders).observe(document.body, { childList: true, subtree: true });
});
window.addEventListener("load", letWideOutputsScroll);
window.addEventListener("resize", letWideOutputsScroll);
