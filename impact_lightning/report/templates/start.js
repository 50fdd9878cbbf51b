"use strict";

/** The last part: bring what the page holds to life. */
(() => {
  const viewers = { features: Viewers.features, circuits_viewer: Viewers.circuits, classes: Viewers.classes };
  for (const root of document.querySelectorAll("[data-viewer]")) {
    try {
      viewers[root.dataset.viewer](root, Viewers.data(root.dataset.viewer));
    } catch (error) { // one viewer that fails takes no other with it
      console.error(error);
      root.append(Viewers.make("p", {}, `This part of the page cannot be shown (${error.message}).`));
    }
  }
  addEventListener("hashchange", () => Viewers.follow());
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    if (link && link.getAttribute("href") === location.hash && !event.ctrlKey && !event.metaKey) {
      Viewers.follow(); // the same link again: nothing changes in the address
    }
  });
  Viewers.follow();
})();
