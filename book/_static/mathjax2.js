// The widgets' script hands texts to MathJax 2's queue. MathJax 3, which sets the formulas here, has none.
document.addEventListener("DOMContentLoaded", () => {
  if (window.MathJax && !window.MathJax.Hub) window.MathJax.Hub = { Queue() {} };
});
