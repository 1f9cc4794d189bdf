"use strict";
// What the scripts of all pages begin with: the data of the page, and elements made of it.

const DATA = JSON.parse(document.getElementById("data").textContent);
const at = place => DATA.texts[place];

/** An element with attributes and children; texts are placed as texts. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "on") element.addEventListener(...value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined && child !== ""));
  return element;
}

