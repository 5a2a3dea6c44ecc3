"use strict";
(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const area = document.getElementById("ticket");
  const copy = document.getElementById("copy");
  copy.hidden = false;
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(area.value);
      copy.textContent = "Copied";
    } catch {
      area.closest("details").open = true;
      area.select();
      copy.textContent = document.execCommand("copy") ? "Copied" : "Selected: press Ctrl-C";
    }
  });

  const said = document.getElementById("said");
  if (!said) return;
  const reset = document.getElementById("all");
  const buttons = all("button[data-l]");
  const stack = (element) => {
    const found = /(?:^| )k(\d+)/.exec(element.className);
    return found ? Number(found[1]) : -1;
  };
  const marked = all("[data-r]").map((element) => [element, stack(element)]);

  function filter(low, high, text, pressed) {
    for (const [element, number] of marked) {
      element.classList.toggle("off", number < low || number > high);
    }
    for (const button of buttons) {
      const out = Number(button.dataset.m) < low || Number(button.dataset.l) > high;
      button.classList.toggle("off", out);
      button.setAttribute("aria-pressed", String(button === pressed));
    }
    said.textContent = text;
    reset.hidden = pressed === null;
  }
  const everything = () => filter(-1, Infinity, said.dataset.usual, null);
  for (const button of buttons) {
    button.addEventListener("click", () => {
      if (button.getAttribute("aria-pressed") === "true") return everything();
      filter(Number(button.dataset.l), Number(button.dataset.m), button.title, button);
    });
  }
  for (const [element, number] of marked) {
    if (number < 0) continue;
    element.addEventListener("click", () => {
      const own = buttons.find((each) => each.closest(".classes") && Number(each.dataset.l) === number);
      if (own) own.click();
    });
  }
  reset.addEventListener("click", everything);
})();
