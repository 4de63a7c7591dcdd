// Draws a ring around the part of the page that a step of the tour speaks of, scrolls there, and keeps the place.

const KEPT = "swm-tour";

const found = (path) =>
  path.split(" >>> ").reduce((roots, selector) => {
    const inside = roots.flatMap((root) => [root, ...[...root.querySelectorAll("*")].map((node) => node.shadowRoot).filter(Boolean)]);
    return inside.flatMap((root) => [...root.querySelectorAll(selector)]).slice(0, 1);
  }, [document])[0];

let stop = () => {};

// The browser keeps the step for other tabs and later days: `place` sets it (0 forgets it), without it it is told.
const keepPlace = (place, tell) => {
  try {
    const kept = Number(localStorage.getItem(KEPT));
    if (place === undefined && kept) tell("place", kept);
    else if (place) localStorage.setItem(KEPT, place);
    else if (place === 0) localStorage.removeItem(KEPT);
  } catch {} // storage can be forbidden: the tour then starts over
};

export default function ({ data, setStateValue }) {
  stop();
  keepPlace(data.place, setStateValue);
  if (!data.part) return stop;
  let target = null;
  const look = setInterval(() => {
    const part = found(data.part);
    if (!part || part === target) return;
    if (target) target.style.boxShadow = target.style.borderRadius = "";
    target = part;
    target.style.boxShadow = "0 0 0 4px var(--st-background-color, #fff), 0 0 0 7px #245fcb";
    target.style.borderRadius = "8px";
    target.style.scrollMarginTop = "60px"; // below the app's header; the card stands below all else
    target.scrollIntoView({ block: "start", behavior: "smooth" });
  }, 250);
  stop = () => {
    clearInterval(look);
    if (target) target.style.boxShadow = target.style.borderRadius = "";
    target = null;
  };
  return stop;
}
