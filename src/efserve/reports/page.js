"use strict";
// Read-outs under the pointer, and levels that can be switched off. The page is complete without this.
(() => {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);
  for (const title of document.querySelectorAll("[data-tip] > title")) title.remove();
  const place = (event) => {
    const box = tip.getBoundingClientRect();
    const left = Math.min(event.clientX + 14, innerWidth - box.width - 6);
    const above = event.clientY - box.height - 12;
    tip.style.left = Math.max(6, left) + "px";
    tip.style.top = (above > 6 ? above : event.clientY + 16) + "px";
  };
  document.addEventListener("pointermove", (event) => {
    const mark = event.target.closest ? event.target.closest("[data-tip]") : null;
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.dataset.tip;
    place(event);
  });
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  for (const item of document.querySelectorAll("[data-pick]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.title = "Show or hide";
    button.append(...item.childNodes);
    item.append(button);
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      const figure = item.closest("figure");
      button.setAttribute("aria-pressed", String(shown));
      for (const mark of figure.querySelectorAll("[data-level]")) {
        if (mark.dataset.level === item.dataset.pick) mark.classList.toggle("off", !shown);
      }
    });
  }
})();
