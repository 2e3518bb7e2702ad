// A click on a headline number shows its record: what `cause_lite.pages.headlines.record` wrote beside it.
document.addEventListener("DOMContentLoaded", () => {
  const buttons = document.querySelectorAll("button.number");
  if (!buttons.length) return;
  const box = document.body.appendChild(document.createElement("dialog"));
  box.className = "number";
  const root = document.documentElement.dataset.content_root || "./";
  for (const button of buttons) button.addEventListener("click", () => {
    const lines = Object.entries(JSON.parse(button.dataset.record)).map(([key, value]) => {
      const row = document.createElement("tr");
      row.append(document.createElement("th"), document.createElement("td"));
      [row.firstChild.textContent, row.lastChild.textContent] = [key, String(value)];
      return row;
    });
    const table = document.createElement("table"), close = document.createElement("form");
    table.append(...lines);
    close.method = "dialog";
    close.innerHTML = `<a href="${root}numbers.html">How every number was made</a> <button autofocus>Close</button>`;
    box.replaceChildren(table, close);
    box.showModal();
    box.scrollTop = 0;
  });
});
