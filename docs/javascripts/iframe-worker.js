/* The search of a site that is opened from a folder.
 *
 * Browsers start no worker from file: addresses, so the worker's script runs in a hidden frame
 * that passes messages on. The theme would load such a script from the network.
 */
"use strict";

if (location.protocol === "file:") {
  class IFrameWorker extends EventTarget {
    constructor(url) {
      super();
      const address = JSON.stringify(String(new URL(url, location.href)));
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = `<script src=${address}></script>`;
      this.loaded = new Promise((resolve) => frame.addEventListener("load", resolve)).then(() => {
        // The frame sends its answers to this window, as a worker does to its page.
        frame.contentWindow.postMessage = (data) =>
          this.dispatchEvent(new MessageEvent("message", { data }));
        return frame.contentWindow;
      });
      document.body.append(frame);
    }

    postMessage(data) {
      this.loaded.then((target) =>
        target.dispatchEvent(new target.MessageEvent("message", { data })),
      );
    }

    terminate() {}
  }
  window.IFrameWorker = window.Worker = IFrameWorker;
}
