"use strict";

/* What the theme and Sphinx leave out for those who read without a screen or a mouse. */
document.addEventListener("DOMContentLoaded", () => {
  const set = (selector, name, value) =>
    document.querySelectorAll(selector).forEach((element) => element.setAttribute(name, value));
  set("aside.sidebar-drawer", "aria-label", "All pages");
  set("aside.toc-drawer", "aria-label", "On this page");
  set(".caption[role=heading]", "aria-level", "2");

  const scrollable = document.querySelectorAll("pre, .table-wrapper");
  const reachByKey = () => {
    for (const element of scrollable) {
      if (element.scrollWidth > element.clientWidth) element.tabIndex = 0;
      else element.removeAttribute("tabindex");
    }
  };
  reachByKey();
  window.addEventListener("resize", reachByKey);
});
