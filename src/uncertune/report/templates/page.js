
"use strict";
// Copy the command, page through documents and answers. Tokens: keep the moment while paging, and say a token's number on hover, tap or arrow key.
// The switch between moments is plain radio buttons and needs none of this.
(() => {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  document.body.append(tip);
  let current = null;

  for (const hint of document.querySelectorAll(".hint")) hint.hidden = false;
  // A title does not open on a tap and opens late on a hover: take its text over.
  for (const token of document.querySelectorAll(".text span")) {
    token.dataset.note = token.title;
    token.removeAttribute("title");
  }

  for (const button of document.querySelectorAll(".command button")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch {  // no clipboard for pages like this one: select it, and copy as a key would
        getSelection().selectAllChildren(code);
        document.execCommand("copy");
      }
      button.textContent = "Copied";
    });
  }

  function hide() {
    current?.classList.remove("at");
    current = null;
    tip.hidden = true;
  }

  function show(token) {
    if (token === current) return;
    hide();
    current = token;
    token.classList.add("at");
    tip.textContent = token.dataset.note;
    tip.hidden = false;
    const box = token.getClientRects()[0];
    const width = document.documentElement.clientWidth;
    const left = Math.min(Math.max(box.left + box.width / 2 - tip.offsetWidth / 2, 8), width - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 6;
    const top = above >= 0 ? above : box.bottom + 6;
    tip.style.left = `${Math.max(left, 0) + window.scrollX}px`;
    tip.style.top = `${top + window.scrollY}px`;
  }

  function tokenOf(event) {
    return event.target.closest?.(".text span") ?? null;
  }

  document.addEventListener("pointerover", (event) => {
    if (event.pointerType === "touch") return;
    const token = tokenOf(event);
    if (token) show(token);
    else hide();
  });
  document.addEventListener("click", (event) => {
    const token = tokenOf(event);
    if (token) show(token);
    else hide();
  });

  const steps = new Map([["ArrowRight", 1], ["ArrowLeft", -1], ["Home", -Infinity], ["End", Infinity]]);
  for (const text of document.querySelectorAll(".text")) {
    text.addEventListener("focusout", hide);
    text.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return hide();
      const key = steps.get(event.key);
      if (key === undefined || event.ctrlKey || event.metaKey || event.altKey || !text.children.length) return;
      event.preventDefault();
      const last = text.children.length - 1;
      const step = text.dir === "rtl" && Number.isFinite(key) ? -key : key;
      const at = Array.prototype.indexOf.call(text.children, current);
      const next = at < 0 && Number.isFinite(step) ? 0 : Math.min(Math.max(at + step, 0), last);
      text.children[next].scrollIntoView({ block: "nearest" });
      show(text.children[next]);
    });
  }

  // The same moment in every document that has one of that name.
  for (const section of document.querySelectorAll(".documents")) {
    const labels = (page) => [...page.querySelectorAll(".moments label")].map((label) => label.textContent);
    section.addEventListener("change", (event) => {
      hide();
      const name = event.target.labels?.[0]?.textContent;
      for (const page of section.querySelectorAll(".document")) {
        const index = labels(page).indexOf(name);
        if (index >= 0) page.querySelectorAll(".moments input")[index].checked = true;
      }
    });
  }

  for (const section of document.querySelectorAll(".paged")) {
    const pages = [...section.querySelectorAll(".leaf")];
    if (pages.length < 2) continue;
    const pager = section.querySelector(".pager");
    const choice = pager.querySelector("select");
    const [previous, next] = pager.querySelectorAll("button");
    let shown = 0;
    const turn = (index) => {
      shown = Math.min(Math.max(index, 0), pages.length - 1);
      pages.forEach((page, place) => page.classList.toggle("away", place !== shown));
      if (choice) choice.value = String(shown);
      else pager.querySelector("output").textContent = `${shown + 1} of ${pages.length}`;
      previous.setAttribute("aria-disabled", String(shown === 0));
      next.setAttribute("aria-disabled", String(shown === pages.length - 1));
      hide();
    };
    pager.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) turn(shown + Number(button.dataset.step));
    });
    choice?.addEventListener("change", () => turn(Number(choice.value)));
    pager.hidden = false;
    turn(0);
  }
})();
