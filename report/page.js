for (const head of document.querySelectorAll("thead th")) {
  head.setAttribute("aria-sort", "none");
  head.addEventListener("click", () => {
    const heads = [...head.parentNode.children], body = head.closest("table").tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of heads) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => {
      const text = row.cells[heads.indexOf(head)].textContent, number = parseFloat(text.replace("<", ""));
      return isNaN(number) ? text : number;
    };
    const order = (a, b) => typeof a === typeof b ? (a > b) - (a < b) : typeof a === "number" ? -1 : 1;
    body.append(...[...body.rows].sort((a, b) => (up ? 1 : -1) * order(value(a), value(b))));
  });
}
const contents = document.querySelector("nav details");
for (const link of contents.querySelectorAll("a")) link.addEventListener("click", () => { contents.open = false; });
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const one of closed) one.open = true;
});
addEventListener("afterprint", () => { for (const one of closed) one.open = false; });
