// Parts of the theme whose names for screen readers are not what they show, or whose roles do not fit together.
document.addEventListener("DOMContentLoaded", () => {
  for (const part of document.querySelectorAll(".search-button-field, details > summary")) part.removeAttribute("aria-label");
  for (const list of document.querySelectorAll(".citation-list")) list.removeAttribute("role");
});
